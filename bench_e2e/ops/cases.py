"""What is measured: one `Case` a line of the tables, and the lists of cases of each regime."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from serving_ops.norm_spec import NormSpec
from serving_ops.ops import registry
from serving_ops.quant_format import QuantFormat

FUSED_ADD = "fused_add_rms_norm"
RMS_NORM = "rms_norm"
GATED = "rms_norm_gated"
FUSED_ADD_QUANT = "fused_add_rms_norm_quant"
OPS = (FUSED_ADD, RMS_NORM, GATED, FUSED_ADD_QUANT)

FORMS = {  # those that the FP8 products of engines take
    "block": QuantFormat(granularity="group", group_size=128, scale_layout="column_major"),
    "token": QuantFormat(granularity="token"),
}

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}

Shape = tuple[int, ...]

CPU_SHAPES: tuple[Shape, ...] = tuple((m, n) for n in (896, 2048, 4096) for m in (1, 8, 64, 512, 4096))
CPU_QUICK_SHAPES: tuple[Shape, ...] = ((1, 896), (8, 2048), (64, 4096), (512, 4096))
CPU_VARIANT_SHAPES: tuple[Shape, ...] = ((1, 4096), (8, 4096), (512, 4096))
CPU_GATED_SHAPES: tuple[Shape, ...] = ((1, 16, 128), (8, 16, 128), (2048, 16, 128))

DECODE_SHAPES: tuple[Shape, ...] = tuple(
    (m, n) for n in (1024, 2048, 4096, 5120, 7168, 8192, 16384) for m in (1, 4, 16, 64, 256)
)
PREFILL_SHAPES: tuple[Shape, ...] = (
    *((131072, 896), (32768, 2048), (32768, 4095), (16384, 4096), (16384, 5120), (16384, 5125)),
    *((16384, 7168), (8192, 8192), (4096, 16384), (2048, 32768), (32768, 32768)),
)
SMALL_SHAPES: tuple[Shape, ...] = tuple((m, n) for n in (64, 128, 256, 512) for m in (4096, 32768, 262144, 4194304))
WIDE_SHAPES: tuple[Shape, ...] = ((4096, 65536), (2048, 131072))
CUDA_VARIANT_SHAPES: tuple[Shape, ...] = ((1, 4096), (64, 4096), (256, 8192), (16384, 4096))
HEADS = 24  # of Qwen3-Next and Qwen3.5 on one GPU; their z has a row stride of 2 x 24 x 128 = 6144
CUDA_GATED_SHAPES: tuple[Shape, ...] = tuple((m, HEADS, 128) for m in (1, 32, 256, 8192, 60381))
QUANT_SHAPES: tuple[Shape, ...] = (
    *((1, n) for n in (1024, 2048, 4096, 5120, 7168)),
    *((16, 4096), (64, 4096), (256, 4096), (256, 7168), (8192, 4096), (8192, 7168)),
)

CPU_REGIMES = ("rows", "variants", "gated")
CUDA_REGIMES = ("decode", "prefill", "wide", "small", "gated", "variants", "gemm", "host", "quant")
CUDA_STANDARD = ("decode", "prefill", "gated", "gemm", "host")


@dataclass(frozen=True)
class Case:
    """One op at one size. `shape` is (num_tokens, N) or (num_tokens, num_heads, head_dim)."""

    regime: str
    op: str
    shape: Shape
    dtype: str = "bfloat16"
    layout: str = "contiguous"  # "strided": x and residual (the gated norm: z) are half of a wider tensor's columns
    weight: str = "same"  # the weight's dtype: "same" as x, "float32", or "none" for no weight
    weight_offset: float = 0.0
    threads: int | None = None
    form: str | None = None  # of a quantized result: a key of FORMS

    @property
    def rows(self) -> int:
        return math.prod(self.shape[:-1])

    @property
    def size(self) -> int:
        return self.shape[-1]

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    @property
    def fmt(self) -> QuantFormat | None:
        return None if self.form is None else FORMS[self.form]

    @property
    def bytes_moved(self) -> int:
        """The fewest bytes the op must move: each tensor once, the weight left out (it stays in cache)."""
        spec = NormSpec(self.op, self.size, self.torch_dtype, None, torch.device("meta"), fmt=self.fmt)
        return registry.bytes_moved(registry.find(self.op), registry.sample(spec, self.rows))

    @property
    def label(self) -> str:
        strided = ", strided" if self.layout == "strided" else ""
        form = f", {self.form}" if self.form else ""
        return " x ".join(map(str, self.shape)) + strided + form


def regimes_for(device: str) -> tuple[str, ...]:
    return CUDA_REGIMES if device == "cuda" else CPU_REGIMES


def plan(
    device: str,
    regimes: Sequence[str] = (),
    *,
    ops: Sequence[str] = OPS,
    shapes: Sequence[Shape] = (),
    dtypes: Sequence[str] = ("bfloat16",),
    threads: Sequence[int] = (),
    quick: bool = False,
) -> list[Case]:
    """Every case of the regimes, in the order measured; without regimes, of those that say most on this device.

    shapes: instead of the regimes' own lists.
    """
    regimes = regimes or (CUDA_STANDARD if device == "cuda" else CPU_REGIMES)
    cases = [
        replace(case, dtype=dtype)
        for dtype in dtypes
        for regime in regimes
        for case in _regime_cases(device, regime, shapes, quick)
        if case.op in ops
    ]
    if device == "cpu":
        cases = [replace(case, threads=count) for count in threads for case in cases]
    return cases


def _regime_cases(device: str, regime: str, shapes: Sequence[Shape], quick: bool) -> list[Case]:
    if regime == "gated":
        own = CPU_GATED_SHAPES if device == "cpu" else CUDA_GATED_SHAPES
        chosen = _of_rank(3, shapes or own)
        contiguous = [Case(regime, GATED, shape, weight="float32") for shape in chosen]
        return contiguous + [replace(case, layout="strided") for case in contiguous]
    own = _plain_shapes(device, regime, quick)
    chosen = _of_rank(2, shapes or own)
    if regime == "quant":
        return [
            Case(regime, FUSED_ADD_QUANT, shape, form=form)
            for form, fmt in FORMS.items()
            for shape in chosen
            if shape[-1] % fmt.group(shape[-1]) == 0
        ]
    ops = (FUSED_ADD,) if regime == "gemm" else (FUSED_ADD, RMS_NORM)
    return [Case(regime, op, shape) for op in ops for shape in chosen]


def _of_rank(rank: int, shapes: Sequence[Shape]) -> list[Shape]:
    return [shape for shape in shapes if len(shape) == rank]


def _plain_shapes(device: str, regime: str, quick: bool) -> tuple[Shape, ...]:
    if device == "cpu":
        rows = CPU_QUICK_SHAPES if quick else CPU_SHAPES
        return {"rows": rows, "variants": CPU_VARIANT_SHAPES}[regime]
    lists = {
        "decode": DECODE_SHAPES,
        "prefill": PREFILL_SHAPES,
        "wide": WIDE_SHAPES,
        "small": SMALL_SHAPES,
        "variants": CUDA_VARIANT_SHAPES,
        "gemm": ((1, 4096),),
        "host": ((1, 4096),),
        "quant": QUANT_SHAPES,
    }
    return lists[regime][::4] if quick else lists[regime]
