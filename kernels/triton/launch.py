"""Launching a compiled kernel with little host time.

Triton's own launch binds, specialises and looks up its arguments anew at every call (13 us with 19 arguments, on an
H200's host). Here a call is looked up once by all that Triton specialises on and then goes to the compiled kernel.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch

from triton import knobs

MAX_VARIANTS = 4096
"""Entries kept per kernel. Odd strides add an entry each, and a service that runs for months may see many."""

_compilations = 0


def compilations() -> int:
    """How many variants this process had Triton compile or load, prewarm included."""
    return _compilations


def programmatic_launch_supported(device: torch.device) -> bool:
    """Programmatic dependent launch came with compute capability 9.0."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 9 and torch.version.hip is None


class Launcher:
    """One kernel with its compiled variants."""

    def __init__(self, kernel: Any, **options: Any) -> None:
        """`options` go to Triton's compiler, as `enable_fp_fusion`."""
        self.kernel = kernel
        self._options = options
        self._variants: dict[Hashable, Any] = {}

    def __call__(
        self,
        key: Hashable,
        device_index: int,
        grid: tuple[int, int, int],
        pointers: tuple[torch.Tensor | None, ...],
        numbers: tuple[float, ...],
        constants: tuple[Any, ...],
        num_warps: int,
        pdl: bool,
    ) -> None:
        """Run on the device's current stream.

        `key` tells apart what Triton would compile apart, but for the pointers' alignment, which is added here.
        """
        if device_index < 0:  # the interpreter, on CPU tensors
            self.kernel[grid](*pointers, *numbers, *constants)
            return
        addresses = [None if tensor is None else tensor.data_ptr() for tensor in pointers]
        aligned = [address is not None and address % 16 == 0 for address in addresses]
        variant = (device_index, key, *aligned)
        compiled = self._variants.get(variant)
        if compiled is None:
            self._compile(variant, grid, (*pointers, *numbers, *constants), num_warps, pdl)
            return
        if knobs.runtime.launch_enter_hook.calls or knobs.runtime.launch_exit_hook.calls:  # a profiler listens
            compiled[grid](*addresses, *numbers, *constants)
            return
        stream = torch._C._cuda_getCurrentRawStream(device_index)
        function, packed = compiled.function, compiled.packed_metadata
        compiled.run(*grid, stream, function, packed, None, None, None, *addresses, *numbers, *constants)

    def _compile(
        self, variant: Hashable, grid: tuple[int, int, int], args: tuple[Any, ...], warps: int, pdl: bool
    ) -> None:
        """The first call of a variant: Triton compiles, or loads from its cache, and launches."""
        global _compilations
        compiled = self.kernel[grid](*args, num_warps=warps, launch_pdl=pdl, **self._options)
        _compilations += 1
        if len(self._variants) >= MAX_VARIANTS:
            self._variants.clear()
        self._variants[variant] = compiled

    def forget(self) -> None:
        """Drop the compiled variants, as in a fresh process."""
        self._variants.clear()
