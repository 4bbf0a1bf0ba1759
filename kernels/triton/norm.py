"""The plain norms on CUDA, and those that quantize: from a plan to one launch."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from serving_ops.kernels.launches import Plan, Quantized, RowGrid
from serving_ops.kernels.triton import epilogue
from serving_ops.kernels.triton.launch import Launcher
from serving_ops.kernels.triton.norm_kernels import norm_pair_kernel, norm_rows_kernel, norm_rows_quant_kernel
from serving_ops.kernels.triton.variant import ALIGNMENT, Variant, flags_of, starts_aligned

# In tiles, a fused multiply-add would tie bits to the layout.
_FUSED = {"row": True, "tile": False, "wide": True}
_LAUNCHERS = {kernel: Launcher(norm_rows_kernel, enable_fp_fusion=fused) for kernel, fused in _FUSED.items()}
_IN_PAIRS = {kernel: Launcher(norm_pair_kernel, enable_fp_fusion=fused) for kernel, fused in _FUSED.items()}
_QUANTIZING = {kernel: Launcher(norm_rows_quant_kernel, enable_fp_fusion=fused) for kernel, fused in _FUSED.items()}
FORMS = {"fp32": epilogue.FP32.value, "fp32_power_of_2": epilogue.POWER_OF_2.value, "ue8m0": epilogue.UE8M0.value}


def fields_of(rows: RowGrid, **tensors: Tensor) -> dict[str, Any]:
    """Return the kernels' arguments for these rows, by parameter name. tensors: the tensors of `rows`, in its order."""
    of_rows = rows.num_rows, rows.inner, rows.inner == rows.num_rows
    values = (*of_rows, *tensors.values(), *rows.outer_strides, *rows.inner_strides)
    return dict(zip(_names_of(*tensors), values, strict=True))


@cache
def _names_of(*tensors: str) -> tuple[str, ...]:
    of_tensors = (f"{tensor}_{what}" for what in ("ptr", "outer_stride", "row_stride") for tensor in tensors)
    return ("num_rows", "inner", "FLAT", *of_tensors)


def constants_of(plan: Plan, pdl: bool) -> dict[str, Any]:
    """Return the kernels' constants that a plan decides, by parameter name."""
    return {
        "BLOCK_N": plan.block_n,
        "LOG2_BLOCK_N": plan.block_n.bit_length() - 1,
        "ROWS": plan.rows_per_program,
        "KEPT_N": plan.kept_n,
        "KERNEL": plan.kernel,
        "PAIRWISE": plan.kernel == "tile",
        "PDL": pdl,
        "OVERLAP": plan.overlap,
    }


def quant_fields(quantized: Quantized) -> dict[str, Any]:
    """Return what kernels are passed of a format, its scales and `normed`'s presence, by parameter name."""
    fmt, scales, normed = quantized
    row_stride, group_stride = (0, 0) if fmt.granularity == "tensor" else scales.stride()
    columns = {"tensor": epilogue.GIVEN.value, "token": epilogue.WHOLE_ROW.value, "group": fmt.group_size}
    return {
        "scales_ptr": scales,
        "scales_row_stride": row_stride,
        "scales_group_stride": group_stride,
        "SCALED": columns[fmt.granularity],
        "FORM": FORMS[fmt.scale_format],
        "HAS_NORMED": normed is not None,
    }


def quant_flags(quantized: Quantized) -> dict[str, int]:
    """Return the flags of a variant that plain norms do not have."""
    fmt = quantized.fmt
    return {
        "quantized": 1,
        "int8": fmt.dtype == torch.int8,
        "scale_form": FORMS[fmt.scale_format],
        "normed": quantized.normed is not None,
    }


def starts_like(q: Tensor, x: Tensor, group_size: int) -> bool:
    """Whether every row (group) of q starts on as many elements as `ALIGNMENT` bytes of x hold."""
    starts = q.data_ptr() | group_size
    for stride in q.stride()[:-1]:
        starts |= stride
    return starts * x.itemsize % ALIGNMENT == 0


def run_norm(
    x: Tensor,  # (..., N)
    residual: Tensor | None,  # like x, or fp32; written, unless there is a `total`
    weight: Tensor | None,  # (N,)
    out: Tensor,  # like x; written, may be x. In the dtype of the format, and not x, where the norm quantizes
    eps: float,
    weight_offset: float,
    rows: RowGrid,  # of x, residual (or x again), `quantized.normed` (or x again) where the norm quantizes, and out
    plan: Plan,
    pdl: bool,
    total: Tensor | None = None,  # like residual in shape, dtype and strides; written instead of it
    quantized: Quantized | None = None,
    earlier: Tensor | None = None,  # like x, in the strides of residual; added to it before x
    drops_sum: bool = False,  # nothing is written into residual
) -> None:
    """Launch on x's device and its current stream. The caller has checked the input; num_rows is at least 1.

    A quantized result has the bits of a quantization that follows the plain norm with the same plan.
    """
    size = x.shape[-1]
    in_fp32 = weight is not None and (weight.dtype != x.dtype or weight_offset != 0.0)
    tensors = {"x": x, "residual": x if residual is None else residual}
    if quantized is None:
        in_pairs = drops_sum or earlier is not None
        aligned = starts_aligned((x, residual, earlier, out, total), (weight,), size)
        arguments = fields_of(rows, **tensors, out=out) | {"earlier_ptr": x if earlier is None else earlier}
        launchers, columns = _IN_PAIRS if in_pairs else _LAUNCHERS, size
        flags = {"drops_sum": drops_sum, "earlier": earlier is not None}
    else:
        normed = quantized.normed
        aligned = starts_aligned((x, residual, normed), (weight,), size) and starts_like(out, x, size)
        arguments = fields_of(rows, **tensors, normed=x if normed is None else normed, q=out)
        arguments |= quant_fields(quantized)
        launchers, columns, flags = _QUANTIZING, arguments["SCALED"], quant_flags(quantized)
    flags |= {
        "second": residual is not None,
        "weight_in_fp32": in_fp32,
        "flat": rows.inner == rows.num_rows,
        "aligned": aligned,
        "residual_in_fp32": residual is not None and residual.dtype != x.dtype,
    }
    arguments |= {
        "total_ptr": tensors["residual"] if total is None else total,
        "weight_ptr": x if weight is None else weight,
        "eps": eps,
        "weight_offset": weight_offset,
        "N": size,
        "ALIGNED": aligned,
        "HAS_RESIDUAL": residual is not None,
        "HAS_EARLIER": earlier is not None,
        "HAS_WEIGHT": weight is not None,
        "WEIGHT_IN_FP32": in_fp32,
        **constants_of(plan, pdl),
    }
    grid = (-(-rows.num_rows // plan.rows_per_program), 1, 1)
    variant = Variant(flags_of(x, weight, **flags), size, columns)
    launchers[plan.kernel](variant, plan, grid, arguments, pdl)
