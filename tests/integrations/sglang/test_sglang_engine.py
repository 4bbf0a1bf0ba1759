"""SGLang's engine on CPU, a dense model: with the plugin, without it, and where strict mode must stop it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sglang_versions
import torch

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(torch.cuda.is_available(), reason="on a CUDA machine SGLang does not run on CPU"),
]

NUM_NORMS = 9
"""Of two layers: input, post-attention, q and k norm; and the last norm."""

CALLS_PER_STEP = {"rms_norm": 5, "fused_add_rms_norm": 4, "rms_norm_gated": 0}

WARMED = {"rms_norm": 6, "fused_add_rms_norm": 4, "rms_norm_gated": 0}
"""Calls at start-up, each norm with one token and with two: hidden states, heads, and heads in a view."""

on_each = pytest.mark.parametrize(
    "version", [pytest.param(version, marks=sglang_versions.needs(version)) for version in sglang_versions.VERSIONS]
)


@on_each
def test_one_line_says_that_it_is_on_for_every_norm(served: Callable[..., Any], version: str) -> None:
    (line,) = served(version, "auto").start_up_lines()
    assert f" (auto, cpu): on for {NUM_NORMS} of {NUM_NORMS} RMSNorm; prewarmed " in line
    assert "native" not in line


@on_each
def test_every_step_calls_each_norm_once_in_the_scheduler_and_never_the_reference(
    served: Callable[..., Any], version: str
) -> None:
    run = served(version, "auto")
    assert run.scheduler["pid"] != run.result["pid"]
    calls = run.scheduler["calls"]
    assert {op: count["reference"] for op, count in calls.items()} == {op: {} for op in calls}
    steps = len(run.result["tokens"][0])
    assert {op: count["kernel"] for op, count in calls.items()} == {
        op: WARMED[op] + steps * per_step for op, per_step in CALLS_PER_STEP.items()
    }


@on_each
def test_without_the_switch_the_engine_is_sglangs_own(served: Callable[..., Any], version: str) -> None:
    run = served(version, "off")
    assert run.returncode == 0, run.output[-6000:]
    assert run.start_up_lines() == []
    assert run.scheduler["switched"] == {}
    assert all(count == {"kernel": 0, "reference": {}} for count in run.scheduler["calls"].values())


@on_each
def test_greedy_tokens_equal_native_ones(served: Callable[..., Any], version: str) -> None:
    ours, native = served(version, "auto").result["tokens"], served(version, "off").result["tokens"]
    assert [len(tokens) for tokens in ours] == [len(ours[0])] * 4
    assert ours == native
