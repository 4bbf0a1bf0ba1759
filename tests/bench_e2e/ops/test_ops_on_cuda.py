"""The way of a case on CUDA, with stand-ins for graphs, streams and events."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from serving_ops.bench_e2e.ops import ops_bench, timing
from serving_ops.bench_e2e.ops.cases import BACKWARD, FUSED_ADD, FUSED_ADD_QUANT, QK_ROPE, RMS_NORM, Case
from serving_ops.bench_e2e.ops.contestants import Contestant, eager, ours
from serving_ops.bench_e2e.ops.inputs import make_inputs

CALL_US, L2 = 2.0, 1 << 20


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of calls in each graph that was captured; a call takes CALL_US of the device."""
    captured: list[int] = []

    def capture(calls: list[Callable[[], object]], pool: object) -> Any:
        for call in calls:
            call()
        captured.append(len(calls))
        return SimpleNamespace(replay=lambda: len(calls))

    monkeypatch.setattr(timing, "capture", capture)
    monkeypatch.setattr(timing, "event_ms", lambda replay: CALL_US * replay() / 1e3)
    monkeypatch.setattr(timing, "chains", partial(timing.chains, device="cpu"))
    monkeypatch.setattr(ops_bench, "make_inputs", lambda case, device: make_inputs(case, "cpu"))
    for name in ("Stream", "graph_pool_handle", "current_device", "synchronize"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(L2_cache_size=L2))
    return captured


@pytest.mark.parametrize(
    "case",
    [
        Case("decode", FUSED_ADD, (4, 64)),
        Case("quant", FUSED_ADD_QUANT, (4, 256), form="block"),
        Case("rope", QK_ROPE, (3, 4, 2, 64), form="cached"),
        Case("rows", RMS_NORM, (64, 64), passes=BACKWARD),
    ],
    ids=lambda case: case.regime,
)
def test_a_call_takes_a_replay_over_the_calls_in_it(case: Case, stand_ins: list[int]) -> None:
    record = ops_bench.measure(case, [ours, eager], "cuda")
    assert not record["problems"]
    assert {name: time["median_us"] for name, time in record["times"].items()} == {
        "serving_ops": CALL_US,
        "eager": CALL_US,
    }
    assert len(set(stand_ins)) == 1
    assert timing.MOST_CALLS <= stand_ins[0] <= timing.MOST_CALLS + timing.MOST_SETS


def test_between_products_a_norm_takes_what_it_adds(stand_ins: list[int]) -> None:
    record = ops_bench.measure(Case("gemm", FUSED_ADD, (2, 64)), [ours], "cuda")
    assert record["times"]["serving_ops"]["median_us"] == CALL_US
    assert stand_ins == [2 * timing.PRODUCTS, timing.PRODUCTS]


def test_host_time_is_of_calls_that_are_in_no_graph(stand_ins: list[int]) -> None:
    record = ops_bench.measure(Case("host", QK_ROPE, (1, 4, 2, 64)), [ours], "cuda")
    assert record["times"]["serving_ops"]["rounds"] == timing.ROUNDS
    assert stand_ins == []


def test_who_cannot_be_captured_is_named_and_the_others_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    capture = timing.capture

    def waits(calls: list[Callable[[], object]], pool: object) -> Any:
        if calls[0]() == "waits":
            raise RuntimeError("operation not permitted when stream is capturing")
        return capture(calls, pool)

    def bind(case: Case, inputs: Any) -> Callable[[], object]:
        return lambda: "waits"

    monkeypatch.setattr(timing, "capture", waits)
    waiting = Contestant("waits", "1", bind, computes=False)
    record = ops_bench.measure(Case("decode", RMS_NORM, (2, 64)), [ours, waiting], "cuda")
    assert set(record["times"]) == {"serving_ops"}
    assert record["problems"]["waits"].startswith("failed in graph capture: RuntimeError: operation not permitted")
