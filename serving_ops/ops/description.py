"""The words that an op is described in, and what one description says about a call.

`serving_ops.ops.registry` derives an operator from a `NormOp`: schemas, fakes, checks, fallback and registration.
An argument's kind says what is right for it, and what a layer passes (`NormSpec`).
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor

from serving_ops import checks
from serving_ops.norm_spec import NormSpec
from serving_ops.quant_format import QuantFormat

Call = dict[str, Any]
"""Arguments of one call by name, and those results that the caller gives or that are allocated for it."""


MAX_FLOAT = torch.finfo(torch.float32).max


@dataclass(frozen=True)
class Rows:
    """A tensor like x: (..., N), in x's dtype, on x's device, any strides.

    read, written: both for a tensor that is overwritten in place.
    may_be: arguments that a written tensor may be, element for element. It shares memory with no other.
    given: of an optional tensor, the field of `NormSpec` that says whether a layer passes it.
    token_stride: the field of `NormSpec` that has its layout.
    fp32: the field of `NormSpec` that says whether it is fp32 beside an x of half precision; None: it is as x.
    """

    name: str
    read: bool = True
    written: bool = False
    may_be: tuple[str, ...] = ()
    given: str | None = None
    token_stride: str = "token_stride"
    fp32: str | None = None

    def check(self, value: Any, call: Call) -> None:
        if value is call["x"]:
            checks.rows(self.name, value)
        elif value is not None:
            checks.like_x(self.name, value, call["x"], or_fp32=self.fp32 is not None)

    def sample(self, spec: NormSpec, num_tokens: int) -> Tensor | None:
        if self.given is not None and not getattr(spec, self.given):
            return None
        rows = spec.rows(num_tokens, getattr(spec, self.token_stride))
        return rows.float() if self.fp32 is not None and getattr(spec, self.fp32) else rows


@dataclass(frozen=True)
class Vector:
    """(N,), in x's dtype or fp32, or None. given: as `Rows.given`."""

    name: str
    given: str | None = None

    def check(self, value: Any, call: Call) -> None:
        if value is None:
            return
        x = call["x"]
        checks.fits(self.name, value, x.device, x.dtype, torch.float32)
        if value.dim() != 1 or value.shape[0] != x.shape[-1]:
            checks.fail(f"{self.name}.shape", tuple(value.shape), f"it must be (N,) = ({x.shape[-1]},)")

    def sample(self, spec: NormSpec, num_tokens: int) -> Tensor | None:
        return spec.vector() if self.given is None or getattr(spec, self.given) else None


@dataclass(frozen=True)
class Number:
    """A number that is finite in fp32, in which kernels compute. One that a trace does not know is any.

    field: the one of `NormSpec` that has it, by default the one of its name. least: the lowest.
    """

    name: str
    field: str | None = None
    least: float | None = None

    def check(self, value: Any, call: Call) -> None:
        least = -MAX_FLOAT if self.least is None else self.least
        if not isinstance(value, torch.SymFloat) and not least <= value <= MAX_FLOAT:
            at_least = "" if self.least is None else f", and at least {self.least}"
            checks.fail(self.name, value, f"it must be finite in float32{at_least}")

    def sample(self, spec: NormSpec, num_tokens: int) -> Any:
        return getattr(spec, self.field or self.name)


@dataclass(frozen=True)
class Flag(Number):
    """True or False."""

    def check(self, value: Any, call: Call) -> None:
        checks.flag(self.name, value)


@dataclass(frozen=True)
class Choice(Number):
    """One of a few words."""

    allowed: tuple[str, ...] = ()

    def check(self, value: Any, call: Call) -> None:
        if value not in self.allowed:
            checks.fail(self.name, repr(value), f"allowed are {', '.join(self.allowed)}")


@dataclass(frozen=True)
class Divisor(Number):
    """A number of elements that divides N; None for N."""

    def check(self, value: Any, call: Call) -> None:
        size = call["x"].shape[-1]
        if value is not None and (value < 1 or size % value):
            checks.fail(self.name, value, f"it must be at least 1 and divide N = {size}")


@dataclass(frozen=True)
class Scalar:
    """An fp32 tensor of one element, the scale of all rows where their format has no other, or None."""

    name: str

    def check(self, value: Any, call: Call) -> None:
        if value is not None:
            checks.laid_out(self.name, value, call["x"].device, (), torch.float32, None)

    def sample(self, spec: NormSpec, num_tokens: int) -> Tensor | None:
        return torch.ones((), device=spec.device) if spec.has_scale else None


@dataclass(frozen=True)
class Format:
    """A `QuantFormat`, beside a `Scalar`, `scale`. The operator takes its text instead: schemas know no dataclasses."""

    name: str

    def check(self, value: QuantFormat, call: Call) -> None:
        size, scale = call["x"].shape[-1], call["scale"]
        if size % value.group(size):
            checks.fail("fmt.group_size", value.group_size, f"it must divide N = {size}")
        if (scale is None) == (value.granularity == "tensor"):
            given = "None" if scale is None else "given"
            checks.fail("scale", given, "it is given where fmt.granularity is 'tensor', and nowhere else")

    def sample(self, spec: NormSpec, num_tokens: int) -> QuantFormat | None:
        return spec.fmt


@dataclass(frozen=True)
class Own:
    """An argument that no other op has: `NormOp.check_own` and `sample_own` know it. written, may_be: as for `Rows`."""

    name: str
    written: bool = False
    may_be: tuple[str, ...] = ()

    def check(self, value: Any, call: Call) -> None:
        pass


Argument = Rows | Vector | Scalar | Number | Format | Own


class Layout(NamedTuple):
    """Of a result. strides: None for a contiguous tensor where it is new, and any strides where it is given."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    strides: tuple[int, ...] | None = None


EPS = Number("eps", least=0.0)

RESIDUAL = Rows("residual", fp32="fp32_residual")
"""What is added to x. The sum has its dtype."""

UPDATED_RESIDUAL = dataclasses.replace(RESIDUAL, written=True)
"""The same, overwritten with the sum."""


def like_x(call: Call) -> Layout:
    return Layout(tuple(call["x"].shape), call["x"].dtype)


@dataclass(frozen=True)
class Result:
    """A tensor that the op makes, or writes where the caller gives one. may_be: as `Rows.may_be`."""

    name: str
    layout: Callable[[Call], Layout] = like_x
    may_be: tuple[str, ...] = ()

    def check(self, value: Any, call: Call) -> None:
        checks.laid_out(self.name, value, call["x"].device, *self.layout(call))

    def empty(self, call: Call) -> Tensor:
        shape, dtype, strides = self.layout(call)
        if strides is None:
            return torch.empty(shape, dtype=dtype, device=call["x"].device)
        return torch.empty_strided(shape, strides, dtype=dtype, device=call["x"].device)


@dataclass(frozen=True)
class NormOp:
    """One op.

    function: the public one. The operator has its name, and its defaults behind the last argument without one.
    formula: takes the arguments by name, returns the results, and writes what is written in place.
    arguments: in the function's order; the first has the device and the dtype of the call.
    route: on CUDA, takes a checked call by name; returns what it takes to launch it, the plan last, or why the
        reference runs.
    launch: takes a route, and the call by name.
    differentiated: runs the operator forward, and its gradients backward; takes the call in the operator's order.
    in_cpp: the types of device that the C++ library registers it for; there Python serves what C++ hands back.
    has_out: whether there is an overload that writes results where the caller wants them.
    part_of: the op that does the same in place, and counts the calls of both.
    run: calls that op, on copies, where no kernel is launched.
    tokens_to_prewarm: counts that together use every plan of a layer; None for those of rows.
    check_own: raises for wrong shapes, dtypes, devices and options of `Own` arguments.
    sample_own: the arguments that a layer passes to an op that has them.
    check_values: raises for wrong numbers in tensors of indices; called where that needs no synchronization.
    bytes_moved: the fewest that a call must move; None for its rows and results, once each way.
    """

    function: Callable[..., Any]
    formula: Callable[..., Any]
    arguments: tuple[Argument, ...]
    results: tuple[Result, ...] = ()
    route: Callable[..., Any] | None = None
    launch: Callable[..., None] | None = None
    differentiated: type[torch.autograd.Function] | None = None
    in_cpp: tuple[str, ...] = ()
    has_out: bool = True
    part_of: str | None = None
    run: Callable[..., None] | None = None
    tokens_to_prewarm: Callable[[NormSpec], tuple[int, ...]] | None = None
    check_own: Callable[[Call], None] | None = None
    sample_own: Callable[[NormSpec, int], Call] | None = None
    check_values: Callable[[Call], None] | None = None
    bytes_moved: Callable[[Call], int] | None = None

    @property
    def name(self) -> str:
        return self.function.__name__

    @cached_property
    def needed(self) -> frozenset[str]:
        """The tensors that are never None: PyTorch lets None through, as a tensor that is not defined."""
        results = {result.name for result in self.results}
        return frozenset(name for name in self.all if name in results or self.parameters[name].annotation == "Tensor")

    @cached_property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        return inspect.signature(self.function).parameters

    @cached_property
    def defaults(self) -> Call:
        return {argument.name: self.parameters[argument.name].default for argument in self.arguments}

    @cached_property
    def num_given(self) -> int:
        """How many arguments calls give by position: up to the last one that has no default."""
        defaults = self.defaults.values()
        return max(place for place, default in enumerate(defaults, 1) if default is inspect.Parameter.empty)

    @cached_property
    def place(self) -> int:
        """How many arguments stand before the results of `.out`: those that every call gives by position, or all where
        the function takes one with a default by position too."""
        kinds = [self.parameters[argument.name].kind for argument in self.arguments[self.num_given :]]
        return len(self.arguments) if inspect.Parameter.POSITIONAL_OR_KEYWORD in kinds else self.num_given

    @cached_property
    def all(self) -> dict[str, Argument | Result]:
        """Arguments and results by name, in the order in which `.out` declares and C++ passes them."""
        return {p.name: p for p in (*self.arguments[: self.place], *self.results, *self.arguments[self.place :])}

    @cached_property
    def may_be(self) -> dict[str, tuple[str, ...]]:
        """For each tensor that may be written, those that it may be."""
        return {name: parameter.may_be for name, parameter in self.all.items() if is_written(parameter)}

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
        """What the dispatcher passes to an implementation: it leaves out what has its default."""
        call = self.defaults | dict(zip(self.all, args, strict=False)) | dict(kwargs)
        for argument in self.arguments:
            if isinstance(argument, Format):
                call[argument.name] = QuantFormat.parse(call[argument.name])
        return call

    def unbind(self, call: Call) -> Call:
        """The same as the operator takes it, in its order."""
        values = {name: call[name] for name in self.all if name in call}
        return {name: value.text if isinstance(value, QuantFormat) else value for name, value in values.items()}

    def bind_public(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
        """The same for a call of the public function."""
        bound = inspect.signature(self.function).bind(*args, **kwargs)
        bound.apply_defaults()
        unset = {result.name for result in self.results if bound.arguments.get(result.name) is None}
        return {name: value for name, value in bound.arguments.items() if name not in unset}

    def subject(self, call: Call) -> Tensor:
        """The tensor whose device and dtype are the call's."""
        tensor: Tensor = call[self.arguments[0].name]
        return tensor

    def arguments_of(self, call: Call) -> Call:
        return {argument.name: call[argument.name] for argument in self.arguments}

    def empty_results(self, call: Call) -> Call:
        """Those that the call does not give."""
        return {result.name: result.empty(call) for result in self.results if result.name not in call}

    def check_metadata(self, call: Call) -> None:
        """Raises for wrong shapes, dtypes, devices and options; reads no address, so that it can be traced."""
        for name, value in call.items():
            if value is None and name in self.needed:
                checks.fail(name, None, "it must be a tensor")
            if isinstance(value, Tensor):
                checks.dense(name, value)
            self.all[name].check(value, call)
        if self.check_own is not None:
            self.check_own(call)

    def check(self, call: Call) -> None:
        """Raises for all that is wrong about a call, before anything is written."""
        self.check_metadata(call)
        if self.check_values is not None and self.subject(call).device.type == "cpu":
            self.check_values(call)
        written = [name for name in self.may_be if isinstance(call.get(name), Tensor)]
        if not written:
            return
        for name in written:
            checks.written(name, call[name])
        tensors = {name: value for name, value in call.items() if isinstance(value, Tensor)}
        for name in reversed(written):
            for other, tensor in tensors.items():
                if other != name:
                    checks.apart(name, call[name], other, tensor, or_same=other in self.may_be[name])
            del tensors[name]  # two that are written are compared once


def is_written(parameter: Argument | Result) -> TypeGuard[Rows | Own | Result]:
    return isinstance(parameter, Result) or (isinstance(parameter, (Rows, Own)) and parameter.written)
