"""Calls of every registered op, made from its description: what the tests of all ops run on."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from serving_ops import NormSpec, QuantFormat, RopeSpec, reference
from serving_ops.ops import registry
from serving_ops.ops.description import Choice, Divisor, Flag, Format, NormOp, Number, Own, Rows, Vector
from serving_ops.quant_format import ALLOWED

OPS = list(registry.OPS.values())
FLOATING = (torch.float16, torch.bfloat16, torch.float32)


def specs(op: NormOp, dtype: torch.dtype = torch.bfloat16, size: int = 128, *, pairs: bool = False) -> list[NormSpec]:
    """A plain layer of the op, and one for each value of each of its options.

    pairs: for each two, but formats and rotations only alone.
    """
    quantized = any(isinstance(argument, Format) for argument in op.arguments)
    fmt = QuantFormat(granularity="token") if quantized else None
    even = RopeSpec(rotary_dim=size // 2 * 2)
    plain = NormSpec(op.name, size, dtype, dtype, torch.device("cpu"), fmt=fmt, rotation=even)
    options = [list(_changes(argument, plain)) for argument in op.arguments]
    changes = [{}, *itertools.chain.from_iterable(options)]
    if pairs:
        few = [found for found in options if not any({"fmt", "rotation"} & change.keys() for change in found)]
        changes += [a | b for one, other in itertools.combinations(few, 2) for a in one for b in other]
    return list(dict.fromkeys(dataclasses.replace(plain, **change) for change in changes))


def _changes(argument: Any, plain: NormSpec) -> Iterator[dict[str, Any]]:
    given = getattr(argument, "given", None)
    if given in {field.name for field in dataclasses.fields(plain)}:
        yield {given: not getattr(plain, given)}
    if getattr(argument, "fp32", None) is not None and plain.dtype in (torch.float16, torch.bfloat16):
        yield {argument.fp32: True}
    if isinstance(argument, Vector) and given is None:
        yield from ({"weight_dtype": dtype} for dtype in (torch.float32, None))
    if isinstance(argument, Choice):
        yield from ({argument.name: word} for word in argument.allowed)
    elif isinstance(argument, Divisor):
        yield {argument.field or argument.name: plain.size // next(d for d in (4, 7, 5, 1) if plain.size % d == 0)}
    elif isinstance(argument, Format):
        yield from ({argument.name: fmt} for fmt in formats(plain.size))
    elif isinstance(argument, Flag):
        yield {argument.name: not getattr(plain, argument.name)}
    elif type(argument) is Number:
        yield {argument.name: 0.5}
    elif isinstance(argument, Own) and argument.name == "q_weight":
        yield from ({"weight_dtype": dtype} for dtype in (torch.float32, None))
    elif isinstance(argument, Own) and argument.name == "cos_sin_cache":
        yield from ({"rotation": rotation} for rotation in rotations(plain))


def rotations(plain: NormSpec) -> Iterator[RopeSpec]:
    """Layers that rotate in different ways; those of odd sizes rotate less than a head."""
    half, quarter = plain.size // 2, plain.size // 4
    section = (half - 2 * (half // 3), half // 3, half // 3)
    cached = dataclasses.replace(plain.rotation, has_cache=True)
    for change in (
        {"rotary_dim": 2 * quarter},
        {"is_neox": False},
        {"is_neox": False, "rotary_dim": 2 * quarter},
        {"mrope_section": section},
        {"mrope_section": section, "mrope_interleaved": True},
        {"table_dtype": torch.float32},
        {"num_kv_heads": 3, "index_dtype": torch.int32},
        {"separate": True, "num_kv_heads": 2},
    ):
        yield dataclasses.replace(plain.rotation, **change)
    yield cached
    yield dataclasses.replace(cached, separate=True, block_size=None, index_dtype=torch.int32)
    yield dataclasses.replace(cached, num_kv_heads=2, cache_dtype=torch.float8_e4m3fn)


SCALED = ((torch.float8_e4m3fn, "group", 128), (torch.int8, "token", 128))
"""What is tried with every form of scales."""


def formats(size: int) -> Iterator[QuantFormat]:
    """Those that rows of this size can have, with plain scales unless they are in `SCALED`."""
    for values in itertools.product(*ALLOWED.values()):
        plain = values[-2:] == ("fp32", "row_major")
        if not plain and values[:3] not in SCALED:
            continue
        fmt = QuantFormat(*values)
        if size % fmt.group(size) == 0 and (fmt.granularity == "group" or fmt.group_size == 128):
            yield fmt


def make(spec: NormSpec, device: torch.device, num_tokens: int = 5, seed: int = 0) -> dict[str, Any]:
    """Arguments of one call of the public function, with random numbers."""
    call = registry.sample(dataclasses.replace(spec, device=device), num_tokens)
    for place, value in enumerate(call.values()):
        if isinstance(value, Tensor):
            randomise(value, 100 * seed + place)
    return call


def randomise(tensor: Tensor, seed: int) -> None:
    """Indices stay as they are."""
    if not tensor.is_floating_point():
        return
    generator = torch.Generator().manual_seed(seed)
    tensor.copy_(torch.randn(tensor.shape, generator=generator))


def launched(op: NormOp, call: dict[str, Any]) -> str | None:
    """Launch a call as on CUDA, on whatever device it is; returns why not."""
    assert op.route is not None
    route = op.route(**call)
    if isinstance(route, str):
        return route
    registry.launch(op, route, call)
    return None


def is_floating(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def token_dimension(op: NormOp, name: str) -> int | None:
    """Of an argument with an entry a token, the dimension of tokens."""
    if isinstance(op.all[name], Own):
        return {"qkv": 0, "positions": -1, "k": 0, "v": 0, "slot_mapping": 0}.get(name)
    return 0 if isinstance(op.all[name], Rows) else None


def copied(call: dict[str, Any]) -> dict[str, Any]:
    """The same call on tensors of its own."""
    return {name: value.clone() if isinstance(value, Tensor) else value for name, value in call.items()}


def results(op: NormOp, call: dict[str, Any]) -> dict[str, Tensor]:
    """New tensors to write results to, all NaN, or all ones where the dtype has none."""
    made = op.empty_results(call)
    for tensor in made.values():
        tensor.copy_(torch.full(tensor.shape, torch.nan) if tensor.dtype.is_floating_point else torch.ones(()))
    return made


def run(op: NormOp, call: dict[str, Any], **given: Tensor) -> dict[str, Tensor]:
    """Call the public function; what it returned and what it wrote, by name."""
    returned = op.function(**call, **given)
    return collect(op, call, returned)


def by_formula(op: NormOp, call: dict[str, Any]) -> dict[str, Tensor]:
    """The same by the op's formula, on copies."""
    call = copied(call)
    return collect(op, call, op.formula(**call))


def collect(op: NormOp, call: dict[str, Any], returned: Any) -> dict[str, Tensor]:
    """What a call returned and wrote, by name, but no scale that it was given."""
    written = {name: call[name] for name in op.may_be if isinstance(call.get(name), Tensor)}
    made = (returned if isinstance(returned, tuple) else (returned,))[: 1 if call.get("scale") is not None else None]
    return written | dict(zip((result.name for result in op.results), made, strict=False))


def exact(op: NormOp, call: dict[str, Any]) -> dict[str, Tensor]:
    """The results in float64; those of a quantized op as they are before it quantizes."""
    double = {name: value.double() if is_floating(value) else value for name, value in call.items()}
    if "fmt" not in call:
        return by_formula(op, double)
    found = by_formula(op, double | {"normed": torch.empty_like(double["x"])})
    written = [name for name in op.may_be if call.get(name) is not None]
    return {name: found[name] for name in written} | {"out": found["normed"]}


def values(op: NormOp, call: dict[str, Any], outcome: dict[str, Tensor]) -> dict[str, Tensor]:
    """What results stand for, to be compared with `exact`."""
    if "fmt" not in call:
        return {name: value.float() if value.dtype == torch.float8_e4m3fn else value for name, value in outcome.items()}
    scales = outcome.get("scales_out", call["scale"])
    out = reference.dequantize(outcome["out"], scales, call["fmt"])
    return {name: value for name, value in outcome.items() if name != "scales_out"} | {"out": out}
