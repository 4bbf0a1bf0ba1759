"""Device time of a decode step, on a decoder made of CUDA graphs; and the arithmetic behind profiles."""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from serving_ops.bench_e2e import device_time, step_engine
from serving_ops.bench_e2e.device_time import Gpu, around, decode_step_ms, slowest


def asked(gpu: object) -> Callable[[str], Any]:
    return lambda question: getattr(gpu, question)()


class _Decoder:
    """A step is `graphs` graphs of 8 products each, or the products themselves."""

    def __init__(self, graphs: int) -> None:
        self.a = torch.randn(2048, 2048, device="cuda")
        self.products()
        torch.cuda.synchronize()
        self.graphs = [torch.cuda.CUDAGraph() for _ in range(graphs)]
        for graph in self.graphs:
            with torch.cuda.graph(graph):
                self.products()

    def products(self) -> None:
        for _ in range(8):
            self.a @ self.a

    def __call__(self, tokens: int) -> None:
        for _ in range(tokens - 1):
            for graph in self.graphs:
                graph.replay()
            if not self.graphs:
                self.products()
        torch.cuda.synchronize()


@pytest.mark.gpu
@pytest.mark.parametrize("graphs", [0, 1, 2])
def test_a_step_takes_as_long_as_events_say_whatever_it_is_made_of(graphs: int) -> None:
    decoder = _Decoder(graphs)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    decoder(50)
    start.record()
    decoder(101)
    end.record()
    end.synchronize()
    assert decode_step_ms(decoder, asked(Gpu())) == pytest.approx(start.elapsed_time(end) / 100, rel=0.15)


class _Told:
    """A GPU that was told how many graphs it replays, by how many tokens are served."""

    def __init__(self, graphs_a_step: int, ahead: int) -> None:
        self.graphs_a_step, self.ahead, self.tokens = graphs_a_step, ahead, 0

    def serve(self, tokens: int) -> None:
        self.tokens = tokens

    def count_replays(self) -> None:
        pass

    def replays(self) -> int:
        """The prompt's graphs, those of the steps, and perhaps that of a step nobody waited for."""
        steps = self.tokens - 1
        return 3 + self.graphs_a_step * (steps + (self.ahead if steps else 0))

    def replayed_ms(self) -> float:
        return 1.0

    def profile(self) -> None:
        pass

    def busy_ms(self) -> float:
        return 2.0 * self.tokens


@pytest.mark.parametrize(("graphs_a_step", "ahead", "found"), [(1, 0, 1.0), (1, 1, 1.0), (0, 0, 2.0), (2, 0, 2.0)])
def test_only_a_step_that_is_one_graph_is_replayed(graphs_a_step: int, ahead: int, found: float) -> None:
    gpu = _Told(graphs_a_step, ahead)
    assert decode_step_ms(gpu.serve, asked(gpu)) == found


def test_replays_are_counted_and_the_class_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    class Graph:
        def replay(self) -> None:
            pass

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    original, gpu, graph = Graph.replay, Gpu(), Graph()
    gpu.count_replays()
    graph.replay()
    graph.replay()
    assert (gpu.replays(), gpu.last) == (2, graph)
    assert Graph.replay is original


def test_the_hosts_loop_takes_longer_where_there_is_more_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Gpu().host_loop_ms()
    monkeypatch.setattr(device_time, "HOST_LOOP", device_time.HOST_LOOP // 20)
    assert 0 < Gpu().host_loop_ms() < whole / 2


def test_the_slowest_of_an_engines_gpus_decides() -> None:
    assert (slowest([2.0, 3.0]), slowest([None, None])) == (3.0, None)


def test_a_layer_is_that_of_one_gpu() -> None:
    kernels = [[{"name": "norm", "us": us}] for us in (1.0, 2.0)]
    assert slowest([None, *kernels]) == kernels[0]


def test_a_layer_without_a_gpu_is_made_of_the_operators_that_no_other_one_calls() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU, whose kernels are profiled")
    x, weight = torch.randn(4, 64), torch.randn(64, 64)

    def decode(tokens: int) -> None:
        for _ in range(tokens * 6):
            torch.nn.functional.softmax(torch.nn.functional.linear(x, weight), -1)

    found = around(decode, asked(Gpu()), 9, "profile", "layer")
    assert found is not None
    assert sorted(str(kernel["name"]) for kernel in found) == ["aten::linear", "aten::softmax"]
    assert all(float(kernel["us"]) > 0 for kernel in found)


@pytest.mark.gpu
def test_the_kernels_of_a_captured_layer_are_found() -> None:
    found = around(_Decoder(1), asked(Gpu()), 17, "profile", "layer")
    assert found is not None
    assert len(found) == 1


def test_vllms_workers_are_asked_wherever_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker of vLLM's gets what is called by pickle, as its executor of several processes sends it."""

    class LLM:
        def __init__(self, model: str, **options: object) -> None:
            pass

        def collective_rpc(self, method: object, args: tuple[object, ...]) -> list[object]:
            sent = pickle.dumps(method)
            return [pickle.loads(sent)(worker, *args) for worker in ("rank 0", "rank 1")]

    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=LLM))
    monkeypatch.setattr(device_time, "_own", SimpleNamespace(busy_ms=lambda: 2.5))
    engine = step_engine.VllmEngine("model", {"tensor_parallel_size": 2}, Path())
    assert engine.ask("busy_ms") == 2.5


def test_every_scheduler_of_sglangs_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Engine:
        def __init__(self, **options: object) -> None:
            pass

        def collective_rpc(self, method: str, question: str, answers: str) -> None:
            for pid, ms in ((11, 2.0), (12, 3.0)):
                monkeypatch.setattr(device_time, "_own", SimpleNamespace(busy_ms=lambda ms=ms: ms))
                monkeypatch.setattr(os, "getpid", lambda pid=pid: pid)
                step_engine.answer_from_scheduler(None, question, answers)

    monkeypatch.setitem(sys.modules, "sglang.srt.entrypoints.engine", SimpleNamespace(Engine=Engine))
    assert step_engine.SglangEngine("model", {}, tmp_path).ask("busy_ms") == 3.0


def _fails(tokens: int) -> None:
    raise ValueError("made of cheese")


def test_a_decode_that_fails_leaves_the_class_as_it_was() -> None:
    original = torch.cuda.CUDAGraph.replay
    with pytest.raises(ValueError, match="cheese"):
        decode_step_ms(_fails, asked(Gpu()))
    assert torch.cuda.CUDAGraph.replay is original


def test_a_decode_that_fails_leaves_no_profiler_on(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    profiler = SimpleNamespace(start=lambda: calls.append("start"), stop=lambda: calls.append("stop"), events=list)
    monkeypatch.setattr(torch.profiler, "profile", lambda **options: profiler)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: _fails(0))  # as behind a kernel that failed
    with pytest.raises(ValueError, match="cheese"):
        around(_fails, asked(Gpu()), 1, "profile", "busy_ms")
    assert calls == ["start", "stop"]
