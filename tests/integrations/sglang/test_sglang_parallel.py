"""SGLang on two ranks, which are processes, on CPU: with the plugin and without."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
import sglang_versions
import torch

VERSION = sglang_versions.SERVED[-1]
RANKS = 2

pytestmark = [
    pytest.mark.engine,
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.is_available(), reason="on a CUDA machine SGLang does not run on CPU"),
    sglang_versions.needs(VERSION),
]


@pytest.fixture
def on_two(served: Callable[..., Any]) -> Callable[[str], Any]:
    """on_two(switch): the dense model with this SERVING_OPS."""
    parallel = {"ENGINE_ARGS": json.dumps({"tp_size": RANKS}), **sglang_versions.on_ranks(RANKS)}
    return lambda switch: served("dense", VERSION, switch, **parallel)


def test_every_rank_prewarms_and_says_so_in_a_line(on_two: Callable[[str], Any]) -> None:
    run = on_two("auto")
    assert run.returncode == 0, run.output[-6000:]
    lines = run.start_up_lines()
    assert len(lines) == RANKS
    assert all(re.search(r"on for 9 of 9 RMSNorm; prewarmed \d+ norms", line) for line in lines)


def test_greedy_tokens_equal_native_ones(on_two: Callable[[str], Any]) -> None:
    native, ours = on_two("off"), on_two("auto")
    assert native.returncode == 0, native.output[-6000:]
    assert native.start_up_lines() == []
    assert len(ours.result["tokens"]) == 4
    assert ours.result["tokens"] == native.result["tokens"]
