"""The code of `qk_norm_rope`'s kernel for Hopper, without a GPU: how wide it loads and stores, and what it holds."""

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
from compare_code import compiled, figures, record_launches
from serving_ops import cuda_rope, plan_rope
from serving_ops.norm_spec import NormSpec
from serving_ops.ops import registry
from serving_ops.norm_spec import RopeSpec

launches = record_launches()
cuda_rope.pdl = lambda device: True
cuda_rope.converts_to_fp8 = lambda device: True


def code_of(tokens, has_cache, fp8, pad):
    rope = RopeSpec(num_kv_heads=8, has_cache=has_cache, cache_dtype=torch.float8_e4m3fn if fp8 else None)
    spec = NormSpec("qk_norm_rope", 128, torch.bfloat16, torch.bfloat16, torch.device("cpu"), heads=16, rotation=rope)
    call = registry.sample(spec, tokens)
    call["qkv"] = torch.zeros(tokens, 4096 + pad, dtype=torch.bfloat16)[:, pad:]
    cuda_rope.launch_rope(cuda_rope.rope_route(**call), **call)
    code = compiled(*launches.pop())
    accesses = re.findall(r"\\b(?:ld|st)\\.global[.\\w:]*", code.asm["ptx"])
    cubin = base64.b64encode(code.asm["cubin"]).decode()
    return {"accesses": accesses, "shared": code.metadata.shared, "figures": figures(code.asm["ptx"], cubin)}


print(json.dumps([code_of(*case) for case in json.loads(sys.argv[1])]))
"""
FEW, MANY = 1, 8192
CASES = [(MANY, False, False, 0), (MANY, True, False, 0), (MANY, True, True, 0), (MANY, False, False, 1)]
CASES += [(FEW, False, False, 0), (FEW, True, True, 0)]
PLAIN, CACHED, FP8, MISALIGNED, ONE, ONE_FP8 = range(len(CASES))


@pytest.fixture(scope="module")
def code() -> list[dict[str, Any]]:
    """In one process that has the compiler: here, without a GPU, the kernels are in Triton's interpreter."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(HERE)
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, json.dumps(CASES)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert ran.returncode == 0, ran.stderr
    found: list[dict[str, Any]] = json.loads(ran.stdout)
    return found


def widths(found: dict[str, Any], what: str) -> set[str]:
    """Of loads or stores of tiles; positions and slots are numbers of 64 bits."""
    return {access.partition(".global")[2] for access in found["accesses"] if access.startswith(what)} - {".b64"}


def test_every_tile_the_table_and_weights_move_16_bytes_a_thread(code: list[dict[str, Any]]) -> None:
    for case in (PLAIN, CACHED):
        assert widths(code[case], "ld") == {".v4.b32"}
        assert widths(code[case], "st") == {".v4.b32"}
    assert widths(code[FP8], "st") == {".v4.b32", ".v2.b32"}
    assert "v4" not in str(widths(code[MISALIGNED], "ld"))


def test_halves_are_rotated_without_shared_memory_and_spills(code: list[dict[str, Any]]) -> None:
    """FP8 lies in other vectors than what it comes from, and so may go through shared memory."""
    assert [code[case]["shared"] for case in (PLAIN, CACHED, ONE)] == [0, 0, 0]
    for found in code:
        assert "STACK:0 " in found["figures"], found["figures"]


def test_heads_are_read_and_written_once(code: list[dict[str, Any]]) -> None:
    """Two halves of the heads, of their weight, and of the table, and the position. A thread of four warps moves its
    part of each at once, and a thread of one warp in two moves. The write to a cache comes on top."""
    for case, moves in ((ONE, 1), (PLAIN, 2)):
        assert sum(access.startswith("ld") for access in code[case]["accesses"]) == 6 * moves + 1
        assert sum(access.startswith("st") for access in code[case]["accesses"]) == 2 * moves
