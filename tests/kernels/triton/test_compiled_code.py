"""The kernels as Triton compiles them for Hopper, without a GPU: that it does, and how wide loads and stores are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from serving_ops.training import plan_backward

# In a process of its own: where there is no GPU, this one has the kernels in Triton's interpreter. It compiles each
# description that it reads, a line each, and answers with a line: importing Triton takes longer than a kernel.
COMPILER = """
import ast, importlib, json, re, subprocess, sys, tempfile
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from serving_ops.kernels.triton.launch import Launcher

TYPES = {"num_rows": "i32", "inner": "i32", "eps": "fp32", "weight_offset": "fp32"}
TYPES |= {"partial_ptr": "*fp32", "num_parts": "i32", "size": "i32"}

def compiled(kernel, constants, num_warps, pointer):
    signature = {
        name: "constexpr" if name in constants else TYPES.get(name, pointer if name.endswith("_ptr") else "i64")
        for name in kernel.arg_names
    }
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=places)
    options = {"num_warps": num_warps, "enable_fp_fusion": True}
    return compile(source, target=GPUTarget("cuda", 90, 32), options=options)

def accesses(ptx):
    copies = re.findall(r"cp\\.async\\.c[ag]\\.shared\\.global \\[[^]]*\\], \\[[^]]*\\], 0x10", ptx)
    return sorted({*re.findall(r"(?:ld|st)\\.global[.\\w:]*", ptx), *(["ld.by.cp.async.v4.b32"] if copies else [])})

def local_loads(cubin):
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        tool = triton.__path__[0] + "/backends/nvidia/bin/cuobjdump"
        sass = subprocess.run([tool, "-sass", file.name], capture_output=True, text=True, check=True).stdout
    assert "LDG" in sass
    return sass.count("LDL")

for line in sys.stdin:
    try:
        module, name, *how = ast.literal_eval(line)
        kernel = getattr(importlib.import_module("serving_ops.kernels.triton." + module), name)
        code = compiled(kernel, *how)
        answer = {"accesses": accesses(code.asm["ptx"]), "local_loads": local_loads(code.asm["cubin"])}
        launcher = Launcher(kernel)
        recipe = launcher.recipe
        answer["launched_by_cpp"] = recipe is not None and launcher._is_plain(code, len(recipe))
    except Exception as error:
        answer = {"error": repr(error)}
    print(json.dumps(answer), flush=True)
"""

SHARED = {"FLAT": False, "HAS_WEIGHT": True, "PDL": True, "OVERLAP": True}
TILE = {"BLOCK_N": 128, "LOG2_BLOCK_N": 7, "ROWS": 16}
NORM = SHARED | {"HAS_RESIDUAL": True, "WEIGHT_IN_FP32": False, "LOG2_BLOCK_N": 0, "ROWS": 1, "KEPT_N": 0}
PAIR = {name: value for name, value in NORM.items() if name != "HAS_RESIDUAL"} | {"HAS_EARLIER": True}
GATED = TILE | {"GROUP": 128, "PAIRWISE": True, "HAS_GATE": True, "HAS_BIAS": True, "GATE_FIRST": False}
BACKWARD = {"STAGES": 3, "FLAT": False, "HAS_MORE": True, "HAS_WEIGHT": True, "PDL": True}
KERNELS = {
    "norm_kernels row": ("norm_rows_kernel", NORM | {"KERNEL": "row", "N": 4096, "BLOCK_N": 4096}, 4),
    "norm_kernels tile": ("norm_rows_kernel", NORM | TILE | {"KERNEL": "tile", "N": 128}, 1),
    "norm_kernels wide": (
        "norm_rows_kernel",
        NORM | {"KERNEL": "wide", "N": 65536, "BLOCK_N": 16384, "KEPT_N": 32768},
        32,
    ),
    "norm_kernels pair": ("norm_pair_kernel", PAIR | {"KERNEL": "row", "N": 4096, "BLOCK_N": 4096}, 4),
    "norm_kernels pair, wide": (
        "norm_pair_kernel",
        PAIR | {"KERNEL": "wide", "N": 65536, "BLOCK_N": 16384, "KEPT_N": 32768},
        32,
    ),
    "gated": ("gated_kernel", SHARED | GATED | {"SIGMOID": False}, 2),
    "backward.norm_backward": ("norm_backward_kernel", BACKWARD | {"N": 8192, "BLOCK_N": 8192, "ROWS": 1}, 8),
    "backward.norm_backward_wide fetched": (
        "norm_backward_wide_kernel",
        {"N": 16384, "BLOCK_N": plan_backward.WIDE_BLOCK_ADDED, "KEPT": 0, "FETCH": True, "FETCH_MORE": True}
        | {"HINTS": False, "HAS_MORE": True, "HAS_WEIGHT": True, "PDL": True},
        plan_backward.WIDE_WARPS,
    ),
    "backward.gated_backward": (
        "gated_backward_kernel",
        {key: value for key, value in GATED.items() if key not in {"LOG2_BLOCK_N", "PAIRWISE"}}
        | {"N": 128, "STAGES": 3, "FLAT": False, "HAS_WEIGHT": True, "SIGMOID": False, "PDL": True},
        4,
    ),
}


OTHER_KERNELS = {
    "backward.partial_sum": (
        "partial_sum_kernel",
        {"PARTS": plan_backward.SUM_WIDE.rows, "COLUMNS": plan_backward.SUM_WIDE.columns, "PDL": True},
        plan_backward.SUM_WIDE.num_warps,
    ),
}
"""That do not read and write rows."""

FEW_LOCAL_LOADS = 8
"""A row, of a pointer or so: twice the columns a block, or twice the blocks kept, of 32768 give 50 and more."""

Compile = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def compiled() -> Iterator[Compile]:
    """compiled(module, name, constants, num_warps): what is in the code for Hopper, and whether C++ launches it."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-c", COMPILER]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as process:

        def ask(module: str, name: str, constants: Any, num_warps: int, pointer: str = "*bf16") -> dict[str, Any]:
            print([module.split()[0], name, constants, num_warps, pointer], file=process.stdin, flush=True)
            answer: dict[str, Any] = json.loads(process.stdout.readline())
            assert "error" not in answer, answer["error"]
            return answer

        yield ask
        process.stdin.close()


@pytest.mark.parametrize("size", [16384, 32768])
@pytest.mark.parametrize("pointer", ["*bf16", "*fp32"])
@pytest.mark.parametrize("has_more", [False, True])
def test_wide_rows_and_their_sums_stay_in_registers(compiled: Compile, size: int, pointer: str, has_more: bool) -> None:
    plan = plan_backward.plan_norm_backward(size, 2 if pointer == "*bf16" else 4, has_more)
    constants = {"N": size, "BLOCK_N": plan.block_n, "KEPT": plan.kept, "FETCH": plan.fetch}
    constants |= {"FETCH_MORE": plan.fetch_more, "HINTS": plan.hints, "ALIGNED": True, "HAS_MORE": has_more}
    constants |= {"HAS_WEIGHT": True, "PDL": True}
    code = compiled("backward.norm_backward_wide", "norm_backward_wide_kernel", constants, plan.num_warps, pointer)
    assert code["local_loads"] <= FEW_LOCAL_LOADS


@pytest.mark.parametrize("module", KERNELS)
def test_cpp_launches_what_triton_compiles_of_norms_but_not_of_gradients(compiled: Compile, module: str) -> None:
    name, constants, num_warps = KERNELS[module]
    code = compiled(module, name, constants | {"ALIGNED": True}, num_warps)
    assert code["launched_by_cpp"] == ("backward" not in module)


@pytest.mark.parametrize("module", OTHER_KERNELS)
def test_the_other_kernels_compile_for_hopper(compiled: Compile, module: str) -> None:
    accesses = compiled(module, *OTHER_KERNELS[module])["accesses"]
    assert {access[:2] for access in accesses} >= {"ld", "st"}


@pytest.mark.parametrize("module", KERNELS)
@pytest.mark.parametrize("aligned", [True, False])
def test_a_thread_moves_16_bytes_at_a_time_where_rows_are_aligned(
    compiled: Compile, module: str, aligned: bool
) -> None:
    name, constants, num_warps = KERNELS[module]
    accesses = compiled(module, name, constants | {"ALIGNED": aligned}, num_warps)["accesses"]
    widest = {access[:2] for access in accesses if "v4.b32" in access}
    assert widest == ({"ld", "st"} if aligned else set())
