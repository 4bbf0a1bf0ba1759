"""Compile what representative calls of every op launch, for GPUs that are not there.

    python tests/kernels/triton/compile_kernels.py TARGET...

With the Triton that is first on PYTHONPATH: for compute capability 9.0, which is 90 here, every call, for others and
for AMD's GPUs, such as gfx942, each kernel once. Prints JSON: Triton's version, the names of all kernels, and by target
those that were compiled ("compiled") and the errors of what was not ("failed").
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import triton
from compare_code import compiled, record_launches

from serving_ops import cuda
from serving_ops.kernels import triton as kernels
from serving_ops.kernels.launches import Plan
from serving_ops.kernels.triton import launch
from serving_ops.norm_spec import NormSpec, RopeSpec
from serving_ops.ops import registry
from serving_ops.quant_format import QuantFormat
from serving_ops.training import cuda_backward

EVERY_CALL = 90
AS_ON_AMD = 89  # what is launched there: FP8, and neither dependent launches nor bulk copies
BF16, FP32, INT8 = torch.bfloat16, torch.float32, torch.int8
TILE, ROW, WIDE = 128, 4096, 40064
"""Elements of rows that each of the norms' three kernels takes. The last one loops over blocks of rows in fp32."""

FORMATS = (
    QuantFormat(scale_layout="tma_aligned", scale_format="ue8m0"),
    QuantFormat(scale_layout="tma_aligned", scale_format="fp32_power_of_2"),
    QuantFormat(granularity="token"),
    QuantFormat(dtype=INT8, granularity="token"),
    QuantFormat(granularity="tensor"),
)
PLAIN = NormSpec("rms_norm", ROW, BF16, BF16, torch.device("cpu"))
PAIR = ("rms_norm_of_sum", "fused_add_two_rms_norm")
ADDED, GATED = replace(PLAIN, op="fused_add_rms_norm"), replace(PLAIN, op="rms_norm_gated")
IN_HEADS = {"size": TILE, "heads": 2, "token_stride": 3 * TILE}
SPECS = (
    replace(PLAIN, **IN_HEADS, weight_dtype=FP32, weight_offset=1.0),
    replace(PLAIN, size=100, weight_dtype=None),
    replace(PLAIN, dtype=FP32, weight_dtype=FP32),
    replace(PLAIN, size=WIDE, weight_dtype=FP32),
    replace(PLAIN, size=WIDE, dtype=FP32, weight_dtype=FP32),
    *(replace(ADDED, size=size) for size in (TILE, ROW, ROW - 1, WIDE)),
    replace(ADDED, op="add_rms_norm"),
    *(replace(ADDED, op=op, size=size) for op in PAIR for size in (TILE, ROW, WIDE)),
    replace(GATED, **IN_HEADS, gate_token_stride=2 * TILE),
    replace(GATED, group_size=1024, norm_before_gate=False, activation="sigmoid", has_bias=True),
    replace(GATED, has_gate=False, weight_dtype=None),
)
ROPE = NormSpec("qk_norm_rope", TILE, BF16, BF16, torch.device("cpu"), heads=4, rotation=RopeSpec(num_kv_heads=2))
ROTATIONS = (
    RopeSpec(),
    RopeSpec(rotary_dim=32, has_cache=True, table_dtype=FP32),
    RopeSpec(is_neox=False, has_cache=True, cache_dtype=torch.float8_e4m3fn, index_dtype=torch.int32),
    RopeSpec(mrope_section=(24, 20, 20)),
    RopeSpec(rotary_dim=64, is_neox=False, mrope_section=(12, 10, 10), mrope_interleaved=True, separate=True),
)

NORM_GRADIENTS = (
    (TILE, BF16, True),
    (100, FP32, False),
    (8192, BF16, True),
    (10240, BF16, True),
    (10240, BF16, False),
    (32768, BF16, False),
    (20480, FP32, True),
)
"""size, dtype and has_more of every plan's kind."""

GATED_GRADIENTS = ((TILE, True, False), (2048, False, True))
"""size, before and has_bias."""


def quantized_specs() -> Iterator[NormSpec]:
    """Every form of results and scales on one size, and some on the kernels of others."""
    for fmt in FORMATS:
        yield replace(ADDED, op="fused_add_rms_norm_quant", fmt=fmt)
        yield replace(GATED, op="rms_norm_gated_quant", size=TILE, fmt=fmt)
    for size in (TILE, WIDE):
        for fmt in (FORMATS[0], FORMATS[3]):
            yield replace(PLAIN, op="rms_norm_quant", size=size, fmt=fmt, has_normed=True)
            yield replace(ADDED, op="fused_add_rms_norm_quant", size=size, fmt=fmt, dtype=FP32, weight_dtype=FP32)
    yield replace(GATED, op="rms_norm_gated_quant", group_size=1024, fmt=QuantFormat(), has_bias=True)


def forward(spec: NormSpec) -> str | None:
    op = registry.find(spec.op)
    call = registry.sample(spec, num_tokens=2)
    call |= op.empty_results(call)
    route = op.route(**call)
    if isinstance(route, str):
        return route
    op.launch(route, **call)
    return None


def norm_gradients(size: int, dtype: torch.dtype, has_more: bool) -> str | None:
    rows, weight = torch.empty(2, size, dtype=dtype), torch.empty(size, dtype=dtype)
    return cuda_backward.norm(rows, rows, rows if has_more else None, weight, 1e-6, 0.0, rows, weight)


def gated_gradients(size: int, before: bool, has_bias: bool) -> str | None:
    rows, weight = torch.empty(2, size, dtype=BF16), torch.empty(size, dtype=BF16)
    bias = weight if has_bias else None
    options = (1e-6, before, "silu", size)
    return cuda_backward.gated(rows, rows, rows, weight, bias, *options, rows, rows, weight, bias)


def calls() -> Iterator[tuple[str, Callable[[], str | None]]]:
    """Each call with its name."""
    for spec in (*SPECS, *quantized_specs(), *(replace(ROPE, rotation=rotation) for rotation in ROTATIONS)):
        yield str(spec), partial(forward, spec)
    for size, dtype, has_more in NORM_GRADIENTS:
        yield f"norm's gradients {size} {dtype} {has_more=}", partial(norm_gradients, size, dtype, has_more)
    for size, before, has_bias in GATED_GRADIENTS:
        yield f"gated norm's gradients {size} {before=} {has_bias=}", partial(gated_gradients, size, before, has_bias)


def pretend(capability: int) -> None:
    """Have calls launch what they would on such a GPU."""
    torch.cuda.get_device_capability = lambda *_: divmod(capability, 10)  # type: ignore[assignment]
    launch.programmatic_launch_supported = lambda _: capability >= 90  # type: ignore[assignment]
    for answer in (cuda.pdl, cuda.converts_to_fp8, cuda_backward._plan_for):
        answer.cache_clear()


def cause_of(error: BaseException) -> str:
    """What Triton wraps, once for each function that it was in."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}"


def compile_for(target: int | str, launches: list[tuple[Any, ...]]) -> dict[str, Any]:
    capability = target if isinstance(target, int) else AS_ON_AMD
    pretend(capability)
    forms: set[tuple[str, str | None]] = set()
    failed: dict[str, str] = {}
    for name, call in calls():
        reason = call()
        if reason is not None and not (reason == cuda.NO_FP8 and capability < 89):
            failed[name] = f"not launched: {reason}"
        while launches:
            launched = launches.pop()
            kernel = launched[0].fn.__name__
            form = kernel, launched[2].kernel if isinstance(launched[2], Plan) else None
            if form in forms and target != EVERY_CALL:
                continue
            try:
                compiled(*launched, target)
                forms.add(form)
            except Exception as error:  # whatever Triton raises, of one kernel, must not hide the others'
                failed[f"{kernel} of {name}"] = cause_of(error)
    return {"compiled": sorted({kernel for kernel, _ in forms}), "failed": failed}


def every_kernel() -> set[str]:
    """The names of what the modules of `kernels/triton/` launch."""
    modules = pkgutil.walk_packages(kernels.__path__, f"{kernels.__name__}.")
    return {
        name for module in modules for name in vars(importlib.import_module(module.name)) if name.endswith("_kernel")
    }


def main(*targets: str) -> None:
    launches = record_launches()
    found = {target: compile_for(int(target) if target.isdigit() else target, launches) for target in targets}
    print(json.dumps({"triton": triton.__version__, "kernels": sorted(every_kernel()), "targets": found}))


if __name__ == "__main__":
    main(*sys.argv[1:])
