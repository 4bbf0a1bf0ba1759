"""The code of the kernels that quantize, for every GPU that runs them, without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
PROGRAM = """
import base64, json, re, sys
import torch
from types import SimpleNamespace
from compare_code import compiled, figures, record_launches
from serving_ops import layout, plan
from serving_ops.kernels.launches import Quantized
from serving_ops.kernels.triton.norm import run_norm

launches = record_launches()


def record(size, dtype, granularity, form, capability):
    fmt = SimpleNamespace(dtype=getattr(torch, dtype), granularity=granularity, group_size=128, scale_format=form)
    x, weight = torch.empty(3, size, dtype=torch.bfloat16), torch.empty(size, dtype=torch.bfloat16)
    q = torch.empty(3, size, dtype=fmt.dtype)
    scales = torch.empty(3, 8, dtype=torch.int32 if form == "ue8m0" else torch.float32)
    grid, chosen = layout.row_grid(x, x, x, q), plan.plan_norm(size, 2, 3)
    quantized = Quantized(fmt, scales, x)
    run_norm(x, x, weight, q, 1e-6, 0.0, grid, chosen, capability >= 90, None, quantized)
    code = compiled(*launches.pop(), capability)
    ptx = code.asm["ptx"]
    return {
        "accesses": sorted(set(re.findall(r"\\b(?:ld|st)\\.global[.\\w:]*", ptx))),
        "packed": "cvt.rn.satfinite.e4m3x2.f32" in ptx,
        "figures": figures(ptx, base64.b64encode(code.asm["cubin"]).decode()) if capability == 90 else "",
    }


print(json.dumps([record(*case) for case in json.loads(sys.argv[1])]))
"""
SIZES = (512, 1024, 4096, 7168, 40000)
FORMS = (("tensor", "fp32"), ("token", "fp32"), ("group", "fp32"), ("group", "ue8m0"))
FP8_FROM, OTHERS = 89, (89, 100, 120)
Case = tuple[int, str, str, str, int]  # size, dtype, granularity, form of scales, capability
CASES: list[Case] = [
    *((size if granularity != "group" or size % 128 == 0 else 40064, "float8_e4m3fn", granularity, form, 90)
      for size in SIZES for granularity, form in FORMS),
    *((4096, "float8_e4m3fn", granularity, form, other) for other in OTHERS for granularity, form in FORMS),
    *((4096, "int8", "token", "fp32", capability) for capability in (80, 90)),
]  # fmt: skip


@pytest.fixture(scope="module")
def code() -> dict[Case, dict[str, Any]]:
    """In one process that has the compiler: here, without a GPU, the kernels are in Triton's interpreter."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(HERE)
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, json.dumps(CASES)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert ran.returncode == 0, ran.stderr
    return dict(zip(CASES, json.loads(ran.stdout), strict=True))


def test_the_kernels_compile_for_every_gpu(code: dict[Case, dict[str, Any]]) -> None:
    assert {case[4] for case in code} == {80, *OTHERS, 90}


def test_a_thread_reads_16_bytes_at_a_time_and_writes_as_many_results(code: dict[Case, dict[str, Any]]) -> None:
    for (size, *_, capability), found in code.items():
        if size > 512:
            assert any(access.startswith("ld") and "v4.b32" in access for access in found["accesses"]), capability
            assert any(access.startswith("st") and "v2.b32" in access for access in found["accesses"]), capability


def test_fp8_is_converted_two_at_a_time_and_saturated(code: dict[Case, dict[str, Any]]) -> None:
    for (_, dtype, *_), found in code.items():
        assert found["packed"] == (dtype == "float8_e4m3fn")


def test_rows_in_registers_do_not_spill(code: dict[Case, dict[str, Any]]) -> None:
    for (size, *_, capability), found in code.items():
        if capability == 90 and size <= 32768:
            assert "STACK:0 " in found["figures"], found["figures"]
