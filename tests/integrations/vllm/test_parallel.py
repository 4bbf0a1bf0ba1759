"""One engine on two workers, which are processes, with the plugin and without."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from once import once

pytest.importorskip("vllm")

from answers import LOGPROB_TOLERANCE, Served, assert_tokens, logprobs_apart

pytestmark = [
    pytest.mark.engine,
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.device_count() == 1, reason="needs two GPUs"),
]

HERE = Path(__file__).parent
RANKS = 2
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",  # of each worker: two share the cores
    "PYTHONSAFEPATH": "1",
    "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",  # serve_tokens.py sends a function to the workers
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_NO_USAGE_STATS": "1",
    "ENGINE_ARGS": json.dumps({"tensor_parallel_size": RANKS}),
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Served]:
    """served(switch): the dense model with this SERVING_OPS."""
    scratch = tmp_path_factory.mktemp("parallel")

    @once
    def model() -> Path:
        subprocess.run([sys.executable, str(HERE / "models.py"), "dense", str(scratch / "dense")], check=True)
        return scratch / "dense"

    @once
    def serve(switch: str) -> Served:
        command = [
            sys.executable,
            str(HERE / "serve_tokens.py"),
            str(model()),
            str(scratch / f"{switch}.json"),
            "eager",
        ]
        environment = {**os.environ, **ENVIRONMENT, "SERVING_OPS": switch}
        merged = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        done = subprocess.run(command, env=environment, timeout=300, check=False, **merged)
        assert done.returncode == 0, done.stdout[-6000:]
        return Served(json.loads((scratch / f"{switch}.json").read_text()), done.stdout)

    return serve


def test_every_rank_prewarms_and_says_so_in_a_line(served: Callable[[str], Served]) -> None:
    lines = served("auto").start_up_lines()
    assert len(lines) == RANKS
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for line in lines:
        assert re.match(rf"serving_ops \S+ \(auto, {device}[:\d]*\): on for ", line)
        assert re.search(r"prewarmed \d+ norms", line)
    assert len({line.partition("): ")[2].partition("prewarmed")[0] for line in lines}) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_every_rank_writes_its_cache_in_the_kernel_that_norms_and_rotates(served: Callable[[str], Served]) -> None:
    from serving_ops.integrations.vllm.qk_norm_rope_layer import CACHED_KIND

    lines = served("auto").start_up_lines()
    assert len(lines) == RANKS
    assert all(f"2 of 2 {CACHED_KIND}" in line for line in lines)


def test_every_rank_has_the_same_factor_of_the_compile_cache_key(served: Callable[[str], Served]) -> None:
    states = served("auto").result["after"]
    assert len({state["pid"] for state in states}) == RANKS
    (key,) = {state["compile_key"] for state in states}
    assert key


@pytest.mark.skipif(torch.cuda.is_available(), reason="replays of CUDA graphs are not counted")
def test_every_rank_calls_the_kernels_and_never_the_reference(served: Callable[[str], Served]) -> None:
    for state in served("auto").result["after"]:
        calls = state["calls"]
        assert {op: count["reference"] for op, count in calls.items()} == {op: {} for op in calls}
        assert calls["fused_add_rms_norm"]["kernel"] > 0


def test_without_the_switch_no_rank_loads_the_plugin(served: Callable[[str], Served]) -> None:
    native = served("off")
    assert native.start_up_lines() == []
    assert [sum(state["norms"].values()) for state in native.result["after"]] == [9] * RANKS


def test_greedy_tokens_equal_native_ones_up_to_near_ties(served: Callable[[str], Served]) -> None:
    native, ours = served("off").result, served("auto").result
    assert_tokens(native, ours)
    assert max(logprobs_apart(native, ours)) <= LOGPROB_TOLERANCE
