"""What is measured: one `Case` a line of the tables, and the sizes of each regime."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from serving_ops.norm_spec import NormSpec, RopeSpec
from serving_ops.ops import registry
from serving_ops.quant_format import QuantFormat

RMS_NORM, FUSED_ADD, GATED = "rms_norm", "fused_add_rms_norm", "rms_norm_gated"
RMS_NORM_QUANT, FUSED_ADD_QUANT, GATED_QUANT = f"{RMS_NORM}_quant", f"{FUSED_ADD}_quant", f"{GATED}_quant"
PAIR = "rms_norm_of_sum", "fused_add_two_rms_norm"  # two norms of one residual, added in fp32
QK_ROPE = "qk_norm_rope"
ADD = "add_rms_norm"  # of training, which cannot write in place

FORWARD, BACKWARD, BOTH = "forward", "backward", "forward and backward"
PASSES = {"ops": (FORWARD,), "training": (BACKWARD, BOTH)}
"""What each of the benches measures of an op at a size."""

FORMS = {  # those that products of engines take: FP8 on CUDA, INT8 on CPU
    "block": QuantFormat(granularity="group", group_size=128, scale_layout="column_major"),
    "token": QuantFormat(granularity="token"),
    "int8": QuantFormat(torch.int8, "token"),
}
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}

# Tensors of the rows' size that the backward pass reads or writes once: dy, x, dx; dy, the gradient of the sum, the
# sum, dx; dy, x, z, dx, dz.
_BACKWARD_TENSORS = {RMS_NORM: 3, ADD: 4, GATED: 5}

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Sizes:
    """The sizes of a regime. standard: measured without being asked for."""

    regime: str
    ops: tuple[str, ...]
    shapes: tuple[Shape, ...]
    standard: bool = True


def _grid(rows: Sequence[int], sizes: Sequence[int]) -> tuple[Shape, ...]:
    return tuple((m, n) for n in sizes for m in rows)


PLAIN = (FUSED_ADD, RMS_NORM)
HEADS = 24  # of Qwen3-Next and Qwen3.5 on one GPU; their z has a row stride of 2 x 24 x 128 = 6144
GATED_ROWS: tuple[Shape, ...] = tuple((m, HEADS, 128) for m in (1, 32, 256, 8192, 60381))
PREFILL: tuple[Shape, ...] = (
    *((131072, 896), (32768, 2048), (32768, 4095), (16384, 4096), (16384, 5120), (16384, 5125)),
    *((16384, 7168), (8192, 8192), (4096, 16384), (2048, 32768), (32768, 32768)),
)
QUANT: tuple[Shape, ...] = (
    *((1, n) for n in (1024, 2048, 4096, 5120, 7168)),
    *((16, 4096), (64, 4096), (256, 4096), (256, 7168), (8192, 4096), (8192, 7168)),
)
ROPE: tuple[Shape, ...] = (  # heads of q and of k: Qwen3 0.6B, 8B, and a model with heads of 256
    *((m, 16, 8, 128) for m in (1, 16, 64, 256, 1024, 8192)),
    *((m, 32, 8, 128) for m in (1, 256, 8192)),
    *((m, 16, 4, 256) for m in (1, 256, 8192)),
)
SIZES = {
    ("ops", "cpu"): (
        Sizes("rows", PLAIN, _grid((1, 8, 64, 512, 4096), (896, 2048, 4096))),
        Sizes("variants", PLAIN, _grid((1, 8, 512), (4096,))),
        Sizes("gated", (GATED,), ((1, 16, 128), (8, 16, 128), (2048, 16, 128))),
        Sizes("int8", (FUSED_ADD_QUANT,), _grid((1, 8, 64, 512), (896, 2048, 4096)), standard=False),
        Sizes("calls", PLAIN, ((1, 896),), standard=False),
    ),
    ("ops", "cuda"): (
        Sizes("decode", PLAIN, _grid((1, 4, 16, 64, 256), (1024, 2048, 4096, 5120, 7168, 8192, 16384))),
        Sizes("prefill", PLAIN, PREFILL),
        Sizes("wide", PLAIN, ((4096, 65536), (2048, 131072)), standard=False),
        Sizes("wide", (FUSED_ADD_QUANT,), ((4096, 16384), (4096, 65536), (2048, 131072)), standard=False),
        Sizes("small", PLAIN, _grid((4096, 32768, 262144, 4194304), (64, 128, 256, 512)), standard=False),
        Sizes("gated", (GATED,), GATED_ROWS),
        Sizes("variants", PLAIN, ((1, 4096), (64, 4096), (256, 8192), (16384, 4096)), standard=False),
        Sizes("gemm", (FUSED_ADD, FUSED_ADD_QUANT), ((1, 4096),)),
        Sizes("host", (*PLAIN, *PAIR, FUSED_ADD_QUANT, RMS_NORM_QUANT), ((1, 4096),)),
        Sizes("host", (GATED, GATED_QUANT), ((1, HEADS, 128),)),
        Sizes("host", (QK_ROPE,), ROPE[:1]),
        Sizes("quant", (FUSED_ADD_QUANT,), QUANT, standard=False),
        Sizes("quant", (GATED, GATED_QUANT), GATED_ROWS, standard=False),
        Sizes("rope", (QK_ROPE,), ROPE, standard=False),
    ),
    ("training", "cpu"): (
        Sizes("rows", (RMS_NORM, ADD), ((64, 1024), (512, 1024), (512, 4096), (4096, 2048), (4096, 4096))),
        Sizes("gated", (GATED,), ((64, 16, 128), (512, 16, 128), (2048, 16, 128))),
    ),
    ("training", "cuda"): (
        Sizes("rows", (RMS_NORM, ADD), _grid((4096,), (1024, 2048, 4096, 8192, 16384))),
        Sizes("large", (RMS_NORM,), ((32768, 4096), (16384, 32768), (32768, 32768))),
        Sizes("large", (ADD,), ((32768, 32768),)),
        Sizes("narrow", (RMS_NORM,), _grid((4096, 16384, 32768), (64, 128, 256, 512))),
        Sizes("gated", (GATED,), tuple((rows, 128) for rows in (24, 768, 6144, 49152, 200000))),
    ),
}
"""(bench, device) -> its regimes, in the order measured."""


@dataclass(frozen=True)
class Case:
    """One op at one size. `shape` is (num_tokens, N) or (num_tokens, num_heads, head_dim); for `qk_norm_rope`
    (num_tokens, num_q_heads, num_kv_heads, head_dim)."""

    regime: str
    op: str
    shape: Shape
    dtype: str = "bfloat16"
    layout: str = "contiguous"  # "strided": x and residual (the gated norm: z) are half of a wider tensor's columns
    weight: str = "same"  # the weight's dtype: "same" as x, "float32", or "none" for no weight
    weight_offset: float = 0.0
    threads: int | None = None
    form: str | None = None  # of a quantized result: a key of FORMS; "cached": k and v are written to a cache too
    passes: str = FORWARD

    @property
    def size(self) -> int:
        return self.shape[-1]

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    @property
    def fmt(self) -> QuantFormat | None:
        return FORMS.get(self.form or "")

    def spec(self, device: str) -> NormSpec:
        weight_dtype = {"same": self.torch_dtype, "float32": torch.float32, "none": None}[self.weight]
        made = NormSpec(self.op, self.size, self.torch_dtype, weight_dtype, torch.device(device), fmt=self.fmt)
        made = replace(made, heads=1 if len(self.shape) == 2 else self.shape[1], weight_offset=self.weight_offset)
        if self.op == QK_ROPE:
            return replace(made, rotation=RopeSpec(self.shape[2], has_cache=self.form == "cached"))
        stride = 2 * made.heads * self.size if self.layout == "strided" else None
        return replace(made, token_stride=None if self.op == GATED else stride, gate_token_stride=stride)

    @property
    def bytes_moved(self) -> int:
        """The fewest bytes the op must move: each tensor once, the weight left out (it stays in cache)."""
        call = registry.sample(replace(self, layout="contiguous").spec("meta"), self.shape[0])
        forward = registry.bytes_moved(registry.find(self.op), call)
        if self.passes == FORWARD:
            return forward
        backward = _BACKWARD_TENSORS[self.op] * math.prod(self.shape) * self.torch_dtype.itemsize
        return backward + (forward if self.passes == BOTH else 0)


def regimes_for(bench: str, *devices: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(sizes.regime for device in devices for sizes in SIZES[bench, device]))


def ops_of(bench: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(op for device in ("cpu", "cuda") for sizes in SIZES[bench, device] for op in sizes.ops))


def plan(
    bench: str,
    device: str,
    regimes: Sequence[str] = (),
    *,
    ops: Sequence[str] = (),
    shapes: Sequence[Shape] = (),
    dtypes: Sequence[str] = ("bfloat16",),
    threads: Sequence[int] = (1,),
) -> list[Case]:
    """Every case of the regimes, in the order measured; without regimes, of those that say most on this device.

    shapes: instead of the regimes' own; in training under an op's first regime alone, since all measure alike.
    """
    planned: list[Case] = []
    for sizes in SIZES[bench, device]:
        if sizes.regime not in regimes if regimes else not sizes.standard:
            continue
        own = [shape for shape in shapes if len(shape) == len(sizes.shapes[0])] if shapes else sizes.shapes
        for op in (op for op in sizes.ops if not ops or op in ops):
            if bench == "ops" or not shapes or op not in {case.op for case in planned}:
                planned += [case for shape in own for case in _cases(bench, sizes.regime, op, shape)]
    planned = [replace(case, dtype=dtype) for dtype in dtypes for case in planned]
    if device == "cpu":
        planned = [replace(case, threads=count) for count in threads for case in planned]
    return planned


def _cases(bench: str, regime: str, op: str, shape: Shape) -> list[Case]:
    """Those of one op at one size. The gated norm's weight is fp32, as models keep it."""
    plain = Case(regime, op, shape, weight="float32" if op in (GATED, GATED_QUANT) else "same")
    if bench == "training":
        return [replace(plain, passes=passes) for passes in PASSES[bench]]
    if op == GATED:
        return [plain, replace(plain, layout="strided")]
    if op.endswith("_quant"):
        forms = ("int8",) if regime == "int8" else ("block", "token")
        return [replace(plain, form=form) for form in forms if shape[-1] % FORMS[form].group(shape[-1]) == 0]
    if op == QK_ROPE:
        return [plain, replace(plain, form="cached")]
    return [plain]
