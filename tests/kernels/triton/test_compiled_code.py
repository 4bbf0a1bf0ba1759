"""The kernels as Triton compiles them for Hopper, without a GPU: that it does, and how wide loads and stores are."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from serving_ops import plan_backward

# In a process of its own: where there is no GPU, this one has the kernels in Triton's interpreter.
PROGRAM = """
import re, sys
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from serving_ops.kernels.triton.{module} import {name} as kernel

constants = {constants!r}
types = {{"num_rows": "i32", "inner": "i32", "eps": "fp32", "weight_offset": "fp32"}}
types |= {{"partial_ptr": "*fp32", "moments_ptr": "*fp32", "num_parts": "i32", "size": "i32"}}
signature = {{
    name: "constexpr" if name in constants else types.get(name, "{pointer}" if name.endswith("_ptr") else "i64")
    for name in kernel.arg_names
}}
places = {{(kernel.arg_names.index(name),): value for name, value in constants.items()}}
source = ASTSource(fn=kernel, signature=signature, constexprs=places)
options = {{"num_warps": {num_warps}, "enable_fp_fusion": True}}
compiled = compile(source, target=GPUTarget("cuda", 90, 32), options=options)
copies = re.findall(r"cp\\.async\\.c[ag]\\.shared\\.global \\[[^]]*\\], \\[[^]]*\\], 0x10", compiled.asm["ptx"])
accesses = set(re.findall(r"(?:ld|st)\\.global[.\\w:]*", compiled.asm["ptx"]))
print(*sorted(accesses), *("ld.by.cp.async.v4.b32" for _ in copies[:1]))
"""

LOCAL_LOADS = """
import subprocess, tempfile, triton
with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
    file.write(compiled.asm["cubin"])
    file.flush()
    tool = triton.__path__[0] + "/backends/nvidia/bin/cuobjdump"
    sass = subprocess.run([tool, "-sass", file.name], capture_output=True, text=True, check=True).stdout
assert "LDG" in sass
print("local loads:", sass.count("LDL"))
"""

SHARED = {"FLAT": False, "HAS_WEIGHT": True, "PDL": True, "OVERLAP": True}
NORM = SHARED | {"HAS_RESIDUAL": True, "WEIGHT_IN_FP32": False}
TILE = {"BLOCK_N": 128, "LOG2_BLOCK_N": 7, "ROWS": 16}
GATED = TILE | {"GROUP": 128, "PAIRWISE": True, "HAS_GATE": True, "HAS_BIAS": True, "GATE_FIRST": False}
BACKWARD = {"STAGES": 3, "FLAT": False, "HAS_MORE": True, "HAS_WEIGHT": True, "PDL": True}
KERNELS = {
    "norm_row": ("norm_row_kernel", NORM | {"N": 4096, "BLOCK_N": 4096}, 4),
    "norm_tile": ("norm_tile_kernel", NORM | TILE | {"N": 128}, 1),
    "norm_wide": ("norm_wide_kernel", NORM | {"N": 65536, "BLOCK_N": 16384, "KEPT_N": 32768}, 32),
    "gated": ("gated_kernel", SHARED | GATED | {"SIGMOID": False}, 2),
    "norm_backward": ("norm_backward_kernel", BACKWARD | {"N": 8192, "BLOCK_N": 8192, "ROWS": 1}, 8),
    "norm_backward_wide fetched": (
        "norm_backward_wide_kernel",
        {"N": 16384, "BLOCK_N": plan_backward.WIDE_BLOCK_ADDED, "KEPT": 0, "FETCH": True, "FETCH_MORE": True}
        | {"HINTS": False, "HAS_MORE": True, "HAS_WEIGHT": True, "PDL": True},
        plan_backward.WIDE_WARPS,
    ),
    "norm_backward_columns": (
        "norm_backward_columns_kernel",
        {"N": 65536, "BLOCK_N": 2048, "STAGES": 3, "HAS_MORE": True, "HAS_WEIGHT": True, "PDL": True},
        4,
    ),
    "gated_backward": (
        "gated_backward_kernel",
        {key: value for key, value in GATED.items() if key not in {"LOG2_BLOCK_N", "PAIRWISE"}}
        | {"N": 128, "STAGES": 3, "FLAT": False, "HAS_WEIGHT": True, "SIGMOID": False, "PDL": True},
        4,
    ),
}


OTHER_KERNELS = {
    "norm_backward_columns moments": (
        "row_moments_kernel",
        {"N": 65536, "BLOCK_N": plan_backward.MOMENTS_BLOCK, "HAS_WEIGHT": True, "ALIGNED": True},
        plan_backward.COLUMNS_WARPS,
    ),
    "partial_sum": (
        "partial_sum_kernel",
        {"PARTS": plan_backward.SUM_WIDE[0], "COLUMNS": plan_backward.SUM_WIDE[1], "PDL": True},
        plan_backward.SUM_WARPS,
    ),
}
"""That a thread moves fewer bytes at a time in, or that do not read and write rows."""

FEW_LOCAL_LOADS = 8
"""A row, of a pointer or so: twice the columns a block, or twice the blocks kept, of 32768 give 50 and more."""


def _output(program: str) -> str:
    command = [sys.executable, "-W", "ignore", "-c", program]
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def compiled(module: str, name: str, constants: dict[str, object], num_warps: int) -> set[str]:
    """The kinds of global access in the code for Hopper."""
    described = {"module": module.split()[0], "name": name, "constants": constants, "num_warps": num_warps}
    return set(_output(PROGRAM.format(**described, pointer="*bf16")).split())


@pytest.mark.parametrize("size", [16384, 32768])
@pytest.mark.parametrize("pointer", ["*bf16", "*fp32"])
@pytest.mark.parametrize("has_more", [False, True])
def test_wide_rows_and_their_sums_stay_in_registers(size: int, pointer: str, has_more: bool) -> None:
    plan = plan_backward.plan_norm_backward(size, 2 if pointer == "*bf16" else 4, has_more)
    constants = {"N": size, "BLOCK_N": plan.block_n, "KEPT": plan.kept, "FETCH": plan.fetch}
    constants |= {"FETCH_MORE": plan.fetch_more, "HINTS": plan.hints, "ALIGNED": True, "HAS_MORE": has_more}
    constants |= {"HAS_WEIGHT": True, "PDL": True}
    described = {"name": "norm_backward_wide_kernel", "constants": constants, "num_warps": plan.num_warps}
    output = _output(PROGRAM.format(module="norm_backward_wide", pointer=pointer, **described) + LOCAL_LOADS)
    assert int(output.rpartition("local loads:")[2]) <= FEW_LOCAL_LOADS


@pytest.mark.parametrize("module", OTHER_KERNELS)
def test_the_other_kernels_compile_for_hopper(module: str) -> None:
    assert {access[:2] for access in compiled(module, *OTHER_KERNELS[module])} >= {"ld", "st"}


@pytest.mark.parametrize("module", KERNELS)
@pytest.mark.parametrize("aligned", [True, False])
def test_a_thread_moves_16_bytes_at_a_time_where_rows_are_aligned(module: str, aligned: bool) -> None:
    name, constants, num_warps = KERNELS[module]
    accesses = compiled(module, name, constants | {"ALIGNED": aligned}, num_warps)
    widest = {access[:2] for access in accesses if "v4.b32" in access}
    assert widest == ({"ld", "st"} if aligned else set())
