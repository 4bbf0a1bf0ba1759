"""Device time of a decode step, on a decoder made of CUDA graphs; and the arithmetic behind profiles."""

from __future__ import annotations

import pytest
import torch

from serving_ops.bench_e2e.turns import device_time
from serving_ops.bench_e2e.turns.device_time import decode_step_ms, union_length


def test_the_union_of_intervals_counts_what_overlaps_once() -> None:
    assert union_length([(0.0, 2.0), (1.0, 3.0), (1.5, 2.5), (5.0, 6.0)]) == 4.0
    assert union_length([]) == 0.0


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
    assert decode_step_ms(decoder) == pytest.approx(start.elapsed_time(end) / 100, rel=0.15)


@pytest.mark.gpu
def test_only_a_step_that_is_one_graph_is_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_time, "_replayed_ms", lambda graph: 1.0)
    monkeypatch.setattr(device_time, "_profiled_ms", lambda decode: 2.0)
    assert [decode_step_ms(_Decoder(graphs)) for graphs in (0, 1, 2)] == [2.0, 1.0, 2.0]
