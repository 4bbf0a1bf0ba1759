"""`rms_norm_quant` and `fused_add_rms_norm_quant` on CUDA: from a plan to one launch."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from serving_ops.kernels.launches import Plan, RowGrid
from serving_ops.kernels.triton import epilogue
from serving_ops.kernels.triton.launch import Launcher
from serving_ops.kernels.triton.norm import constants_of, fields_of
from serving_ops.kernels.triton.norm_row import norm_row_quant_kernel
from serving_ops.kernels.triton.norm_tile import norm_tile_quant_kernel
from serving_ops.kernels.triton.norm_wide import norm_wide_quant_kernel
from serving_ops.kernels.triton.variant import BIT, Variant, flags_of, starts_aligned

_LAUNCHERS = {
    "row": Launcher(norm_row_quant_kernel, enable_fp_fusion=True),
    "tile": Launcher(norm_tile_quant_kernel, enable_fp_fusion=False),  # as `norm`
    "wide": Launcher(norm_wide_quant_kernel, enable_fp_fusion=True),
}
FORMS = {"fp32": epilogue.FP32.value, "fp32_power_of_2": epilogue.POWER_OF_2.value, "ue8m0": epilogue.UE8M0.value}


class QuantFormat(Protocol):
    """As `serving_ops.QuantFormat`."""

    @property
    def dtype(self) -> torch.dtype: ...  # float8_e4m3fn or int8
    @property
    def granularity(self) -> str: ...  # "tensor", "token" or "group"
    @property
    def group_size(self) -> int: ...
    @property
    def scale_format(self) -> str: ...  # "fp32", "fp32_power_of_2" or "ue8m0"


def columns_of_a_scale(fmt: QuantFormat) -> int:
    """The kernels' SCALED."""
    return {
        "tensor": epilogue.GIVEN.value,
        "token": epilogue.WHOLE_ROW.value,
        "group": fmt.group_size,
    }[fmt.granularity]


def run_norm_quant(
    x: Tensor,  # (..., N)
    residual: Tensor | None,  # like x, or fp32; becomes x + residual
    weight: Tensor | None,  # (N,)
    normed: Tensor | None,  # like x; written, may be x
    q: Tensor,  # the shape of x, fmt.dtype; written
    scales: Tensor,  # (num_rows, `fmt.scales`' columns), any strides; written. granularity "tensor": one fp32, read
    eps: float,
    weight_offset: float,
    fmt: QuantFormat,
    rows: RowGrid,  # of x, residual (or x again), normed (or x again) and q
    plan: Plan,
    pdl: bool,
) -> None:
    """Launch on x's device and its current stream. The caller has checked the input; num_rows is at least 1.

    The normalised row is rounded to x's dtype, and its quantization has the bits of one that follows `run_norm` with
    the same plan.
    """
    size = x.shape[-1]
    flat = rows.inner == rows.num_rows
    in_fp32 = weight is not None and (weight.dtype != x.dtype or weight_offset != 0.0)
    aligned = starts_aligned((x, residual, normed), (weight,), size) and starts_like(q, x, size)
    flags = flags_of(x, weight, second=residual is not None, weight_in_fp32=in_fp32, flat=flat, aligned=aligned)
    flags |= (residual is not None and residual.dtype != x.dtype) << BIT.residual_in_fp32
    flags |= quant_flags(fmt, normed=normed is not None)
    arguments = {
        **fields_of(
            rows, x=x, residual=x if residual is None else residual, normed=x if normed is None else normed, q=q
        ),
        **quant_arguments(fmt, scales),
        "weight_ptr": x if weight is None else weight,
        "eps": eps,
        "weight_offset": weight_offset,
        "N": size,
        "ALIGNED": aligned,
        "HAS_RESIDUAL": residual is not None,
        "HAS_WEIGHT": weight is not None,
        "HAS_NORMED": normed is not None,
        "WEIGHT_IN_FP32": in_fp32,
        **constants_of(plan, pdl),
    }
    grid = (-(-rows.num_rows // plan.rows_per_program), 1, 1)
    _LAUNCHERS[plan.kernel](Variant(flags, size, columns_of_a_scale(fmt)), plan, grid, arguments, pdl)


def quant_arguments(fmt: QuantFormat, scales: Tensor) -> dict[str, Any]:
    """What kernels are passed of a format and its scales, by the names of their parameters."""
    row_stride, group_stride = (0, 0) if fmt.granularity == "tensor" else scales.stride()
    return {
        "scales_ptr": scales,
        "scales_row_stride": row_stride,
        "scales_group_stride": group_stride,
        "SCALED": columns_of_a_scale(fmt),
        "FORM": FORMS[fmt.scale_format],
    }


def quant_flags(fmt: QuantFormat, *, normed: bool) -> int:
    """The bits of a variant that plain norms do not have."""
    return (
        1 << BIT.quantized
        | (fmt.dtype == torch.int8) << BIT.int8
        | FORMS[fmt.scale_format] << BIT.scale_form
        | normed << BIT.normed
    )


def starts_like(q: Tensor, x: Tensor, group_size: int) -> bool:
    """Whether every row (group) of q starts on as many elements as 16 bytes of x hold."""
    starts = q.data_ptr() | group_size
    for stride in q.stride()[:-1]:
        starts |= stride
    return starts * x.itemsize % 16 == 0
