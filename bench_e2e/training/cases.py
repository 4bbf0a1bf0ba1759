"""What is measured: an op at a size, and of it the backward pass alone or both passes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from serving_ops.bench_e2e.ops.cases import GATED, RMS_NORM, Case, Shape

ADD = "add_rms_norm"
OPS = (RMS_NORM, ADD, GATED)

BACKWARD = "backward"
BOTH = "forward and backward"
PASSES = (BACKWARD, BOTH)

# Tensors of the rows' size that the backward pass reads or writes once: dy, x, dx; dy, the gradient of the sum, the
# sum, dx; dy, x, z, dx, dz.
_BACKWARD_TENSORS = {RMS_NORM: 3, ADD: 4, GATED: 5}

CPU_ROWS: tuple[Shape, ...] = ((64, 1024), (512, 1024), (512, 4096), (4096, 2048), (4096, 4096))
CPU_GATED: tuple[Shape, ...] = ((64, 16, 128), (512, 16, 128), (2048, 16, 128))
CPU_SHAPES = {RMS_NORM: {"rows": CPU_ROWS}, ADD: {"rows": CPU_ROWS}, GATED: {"gated": CPU_GATED}}

HEAD_DIM = 128
CUDA_ROWS: tuple[Shape, ...] = tuple((4096, n) for n in (1024, 2048, 4096, 8192, 16384))
CUDA_SHAPES: dict[str, dict[str, tuple[Shape, ...]]] = {
    RMS_NORM: {
        "rows": CUDA_ROWS,
        "large": ((32768, 4096), (16384, 32768), (32768, 32768)),
        "narrow": tuple((m, n) for n in (64, 128, 256, 512) for m in (4096, 16384, 32768)),
    },
    ADD: {"rows": CUDA_ROWS, "large": ((32768, 32768),)},
    GATED: {"gated": tuple((rows, HEAD_DIM) for rows in (24, 768, 6144, 49152, 200000))},
}
SHAPES = {"cpu": CPU_SHAPES, "cuda": CUDA_SHAPES}


@dataclass(frozen=True)
class TrainingCase(Case):
    """`passes` is one of PASSES; the gated norm's weight is fp32, as models keep it."""

    passes: str = BACKWARD

    @property
    def bytes_moved(self) -> int:
        forward = super().bytes_moved if self.passes == BOTH else 0
        return forward + _BACKWARD_TENSORS[self.op] * self.rows * self.size * self.torch_dtype.itemsize


def regimes_for(device: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(regime for regimes in SHAPES[device].values() for regime in regimes))


def plan(
    device: str,
    regimes: Sequence[str] = (),
    *,
    ops: Sequence[str] = OPS,
    shapes: Sequence[Shape] = (),
    dtypes: Sequence[str] = ("bfloat16",),
    threads: Sequence[int] = (1,),
    quick: bool = False,
) -> list[TrainingCase]:
    """A case a size, which stands for both passes of it; `shapes` replaces the regimes' own lists."""
    cases = [
        TrainingCase(regime, op, shape, weight="float32" if op == GATED else "same")
        for op in ops
        for regime, own in _regimes_of(device, op, regimes, shapes).items()
        for shape in (own[::2] if quick and not shapes else own)
    ]
    cases = [replace(case, dtype=dtype) for dtype in dtypes for case in cases]
    if device == "cpu":
        cases = [replace(case, threads=count) for count in threads for case in cases]
    return cases


def _regimes_of(device: str, op: str, wanted: Sequence[str], shapes: Sequence[Shape]) -> dict[str, Sequence[Shape]]:
    """An op's sizes by regime; given shapes come under the first alone, since each would measure them again."""
    found = {name: own for name, own in SHAPES[device][op].items() if not wanted or name in wanted}
    return dict.fromkeys(list(found)[:1], shapes) if shapes else dict(found)
