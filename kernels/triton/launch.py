"""Launching a compiled kernel: from Python the first time, and from C++ ever after where the C++ library is there.

The names of a kernel's parameters say what it is passed, from Python and from C++ (`kernels/contract.def`).
Triton's own launch binds, specialises and looks up its arguments anew at every call. Here a call is looked up once by
its `Variant`, its plan and how it is launched, and goes to the compiled kernel; what has been compiled is handed to
`on_compiled`, which tells the C++ launcher about it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping
from operator import itemgetter
from typing import Any, NamedTuple

import torch

from serving_ops.kernels import contract
from serving_ops.kernels.launches import Plan
from serving_ops.kernels.triton.variant import Variant, run_time_parameters
from triton import knobs


class Compiled(NamedTuple):
    """A kernel as the driver knows it.

    function: a CUfunction.
    dependent: launched as a programmatic dependent.
    parameters: for each, a byte, the field of `kernels/contract.def` that it is.
    """

    function: int
    num_warps: int
    shared_bytes: int
    dependent: bool
    parameters: bytes


OnCompiled = Callable[[Variant, Plan, Compiled], None]

on_compiled: OnCompiled | None = None
"""Called with each kernel compiled or loaded that a launcher of ours can launch."""

SCRATCH_BUFFERS = 2
"""That Triton appends to a kernel's parameters; these kernels do not use them, and the C++ launcher passes null."""

_PLACES = {name: place for place, name in enumerate(contract.FIELDS)}


def programmatic_launch_supported(device: torch.device) -> bool:
    """Programmatic dependent launch came with compute capability 9.0."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 9 and torch.version.hip is None


class Launcher:
    """One kernel with its compiled variants. `options` go to Triton's compiler, as `enable_fp_fusion`."""

    def __init__(self, kernel: Any, **options: Any) -> None:
        self.kernel = kernel
        self.options = options
        self._run_time = run_time_parameters(kernel.fn)
        self._in_order = itemgetter(*kernel.arg_names)
        self._num_pointers = sum(name.endswith("_ptr") for name in self._run_time)  # a kernel's first parameters
        self._variants: dict[tuple[Variant, Hashable, bool], Any] = {}

    @property
    def recipe(self) -> bytes | None:
        """How C++ launches the kernel: for each parameter its field; None for a kernel that C++ does not launch."""
        if not all(name in _PLACES for name in self._run_time):
            return None
        return bytes([*map(_PLACES.__getitem__, self._run_time), *[_PLACES["scratch"]] * SCRATCH_BUFFERS])

    def __call__(
        self,
        variant: Variant,
        plan: Any,  # hashable, with num_warps; a `Plan` where the C++ launcher is to know the kernel
        grid: tuple[int, int, int],
        arguments: Mapping[str, Any],  # by the names of the kernel's parameters; others are ignored
        pdl: bool,
    ) -> None:
        """Run on the current stream of the tensors' device, which is the current device."""
        args = self._in_order(arguments)
        device_index = args[0].get_device()
        if device_index < 0:  # the interpreter, on CPU tensors
            self.kernel[grid](*args)
            return
        compiled = self._variants.get((variant, plan, pdl))
        if compiled is None:
            self._compile(variant, plan, grid, args, pdl)
            return
        pointers, others = args[: self._num_pointers], args[self._num_pointers :]
        addresses = [tensor.data_ptr() for tensor in pointers]
        if knobs.runtime.launch_enter_hook.calls or knobs.runtime.launch_exit_hook.calls:  # a profiler listens
            compiled[grid](*addresses, *others)
            return
        stream = torch._C._cuda_getCurrentRawStream(device_index)
        function, packed = compiled.function, compiled.packed_metadata
        compiled.run(*grid, stream, function, packed, None, None, None, *addresses, *others)

    def _compile(
        self, variant: Variant, plan: Any, grid: tuple[int, int, int], args: tuple[Any, ...], pdl: bool
    ) -> None:
        """The first call of a variant: Triton compiles, or loads from its cache, and launches."""
        compiled = self.kernel[grid](*args, num_warps=plan.num_warps, launch_pdl=pdl, **self.options)
        self._variants[variant, plan, pdl] = compiled
        recipe = self.recipe
        if on_compiled is not None and recipe is not None and self._is_plain(compiled, len(recipe)):
            shared_bytes = compiled.metadata.shared
            on_compiled(variant, plan, Compiled(compiled.function, plan.num_warps, shared_bytes, pdl, recipe))

    def _is_plain(self, compiled: Any, num_parameters: int) -> bool:
        """Whether this Triton compiled the parameters that the C++ launcher passes, and nothing that it does not."""
        metadata, types = compiled.metadata, compiled.src.signature
        return (
            len(set(re.findall(rf"{metadata.name}_param_(\d+)", compiled.asm["ptx"]))) <= num_parameters
            and all(_is_type(types[name], contract.FIELDS[name]) for name in self._run_time)
            and getattr(metadata, "num_ctas", 1) == 1
            and not getattr(metadata, "launch_cooperative_grid", False)
            and not getattr(metadata, "global_scratch_size", 0)
            and not getattr(metadata, "profile_scratch_size", 0)
        )


def _is_type(triton_type: str, field_type: str) -> bool:
    return triton_type.startswith("*") if field_type == "pointer" else triton_type == field_type
