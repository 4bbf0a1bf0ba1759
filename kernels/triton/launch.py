"""Launching a compiled kernel: from Python the first time, and from C++ ever after where the C++ library is there.

Triton's own launch binds, specialises and looks up its arguments anew at every call. Here a call is looked up once by
its `Variant`, its plan and how it is launched, and goes to the compiled kernel; what has been compiled is handed to
`on_compiled`, which tells the C++ launcher about it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, Protocol

import torch

from serving_ops.kernels.triton.variant import Variant
from triton import knobs


class Plan(Protocol):
    """As `serving_ops.plan.Plan`."""

    @property
    def kernel(self) -> Any: ...
    @property
    def block_n(self) -> int: ...
    @property
    def rows_per_program(self) -> int: ...
    @property
    def num_warps(self) -> int: ...
    @property
    def overlap(self) -> bool: ...
    @property
    def kept_n(self) -> int: ...
    @property
    def min_rows(self) -> int: ...
    @property
    def max_rows(self) -> int: ...


class Compiled(NamedTuple):
    """A kernel as the driver knows it. function is a CUfunction; dependent: launched as a programmatic dependent."""

    function: int
    num_warps: int
    shared_bytes: int
    dependent: bool


OnCompiled = Callable[[Variant, Plan, Compiled], None]

on_compiled: OnCompiled | None = None
"""Called with each kernel compiled or loaded that a launcher of ours can launch."""

SCRATCH_BUFFERS = 2
"""That Triton appends to a kernel's parameters; these kernels do not use them, and the C++ launcher passes null."""

_compilations = 0


def compilations() -> int:
    """How many variants this process had Triton compile or load, prewarm included."""
    return _compilations


def programmatic_launch_supported(device: torch.device) -> bool:
    """Programmatic dependent launch came with compute capability 9.0."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 9 and torch.version.hip is None


class Launcher:
    """One kernel with its compiled variants.

    parameters: Triton's types of the kernel's run-time parameters after its pointers, as the C++ launcher passes them;
        None for a kernel that it does not launch.
    """

    def __init__(
        self, kernel: Any, pointers: int = 0, parameters: tuple[str, ...] | None = None, **options: Any
    ) -> None:
        """`options` go to Triton's compiler, as `enable_fp_fusion`."""
        self.kernel = kernel
        self._pointers = pointers
        self._parameters = parameters
        self._options = options
        self._variants: dict[tuple[Variant, Hashable, bool], Any] = {}

    def __call__(
        self,
        variant: Variant,
        plan: Any,  # hashable, with num_warps; a `Plan` where the C++ launcher is to know the kernel
        grid: tuple[int, int, int],
        pointers: tuple[torch.Tensor, ...],
        numbers: tuple[float, ...],
        constants: tuple[Any, ...],
        pdl: bool,
    ) -> None:
        """Run on the current stream of the tensors' device, which is the current device."""
        device_index = pointers[0].get_device()
        if device_index < 0:  # the interpreter, on CPU tensors
            self.kernel[grid](*pointers, *numbers, *constants)
            return
        compiled = self._variants.get((variant, plan, pdl))
        if compiled is None:
            self._compile(variant, plan, grid, (*pointers, *numbers, *constants), pdl)
            return
        addresses = [tensor.data_ptr() for tensor in pointers]
        if knobs.runtime.launch_enter_hook.calls or knobs.runtime.launch_exit_hook.calls:  # a profiler listens
            compiled[grid](*addresses, *numbers, *constants)
            return
        stream = torch._C._cuda_getCurrentRawStream(device_index)
        function, packed = compiled.function, compiled.packed_metadata
        compiled.run(*grid, stream, function, packed, None, None, None, *addresses, *numbers, *constants)

    def _compile(
        self, variant: Variant, plan: Any, grid: tuple[int, int, int], args: tuple[Any, ...], pdl: bool
    ) -> None:
        """The first call of a variant: Triton compiles, or loads from its cache, and launches."""
        global _compilations
        compiled = self.kernel[grid](*args, num_warps=plan.num_warps, launch_pdl=pdl, **self._options)
        _compilations += 1
        self._variants[variant, plan, pdl] = compiled
        if on_compiled is not None and self._is_plain(compiled):
            on_compiled(variant, plan, Compiled(compiled.function, plan.num_warps, compiled.metadata.shared, pdl))

    def _is_plain(self, compiled: Any) -> bool:
        """Whether this Triton compiled the parameters that the C++ launcher passes, and nothing that it does not."""
        if self._parameters is None:
            return False
        metadata = compiled.metadata
        given = self._pointers + len(self._parameters) + SCRATCH_BUFFERS
        types = [kind for kind in compiled.src.signature.values() if kind != "constexpr"]
        return (
            len(set(re.findall(rf"{metadata.name}_param_(\d+)", compiled.asm["ptx"]))) <= given
            and all(kind.startswith("*") for kind in types[: self._pointers])
            and tuple(types[self._pointers :]) == self._parameters
            and getattr(metadata, "num_ctas", 1) == 1
            and not getattr(metadata, "launch_cooperative_grid", False)
            and not getattr(metadata, "global_scratch_size", 0)
            and not getattr(metadata, "profile_scratch_size", 0)
        )
