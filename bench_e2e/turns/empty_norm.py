"""An op that launches a kernel which does nothing: what a norm costs for being a kernel of its own."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from serving_ops.kernels.triton.arithmetic import wait_for_kernel_before
from serving_ops.kernels.triton.launch import programmatic_launch_supported


@triton.jit
def _empty_kernel(PDL: tl.constexpr):
    wait_for_kernel_before(PDL, False)  # whoever comes next relies on what came before being complete


@torch.library.custom_op("serving_ops_bench::empty_norm", mutates_args=("x",), device_types="cuda")
def empty_norm(x: torch.Tensor) -> None:
    """Launch it on x's device and its current stream; x is said to be mutated so that no compiler drops the call."""
    pdl = programmatic_launch_supported(x.device)
    _empty_kernel[(1,)](pdl, num_warps=1, launch_pdl=pdl)


@empty_norm.register_fake
def _(x: torch.Tensor) -> None:
    return None
