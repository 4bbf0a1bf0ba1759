"""What one norm adds between two matrix products of a decode step: the figure that a served token feels.

One graph runs product, norm, product, norm, ...; another the products alone. Their difference, over the
number of norms, also holds what the norm's launch hides or fails to hide behind its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch

from serving_ops.bench_e2e.ops.cases import Case
from serving_ops.bench_e2e.ops.contestants import Call, Contestant
from serving_ops.bench_e2e.ops.inputs import Inputs, make_inputs
from serving_ops.bench_e2e.ops.timing import Samples, capture, device_us, round_robin

LAYERS = 8  # of weights, 33 MB each at 4096 x 4096 bf16: every product reads its own from memory, as a model's do
PRODUCTS = 64  # in one graph, about 0.6 ms
ROUNDS = 25  # of a difference of two larger times: more than for a graph of norms alone


class Chain:
    """Products through LAYERS weights, back and forth between two activations."""

    def __init__(self, case: Case) -> None:
        size, made = case.size, {"dtype": case.torch_dtype, "device": "cuda"}
        self.case = case
        self.weights = [torch.empty(size, size, **made).normal_(0.0, size**-0.5) for _ in range(LAYERS)]
        first = make_inputs(case, "cuda")
        # The second step has its own activation and the same residual stream.
        self.steps = first, Inputs(torch.empty_like(first.x).normal_(), first.residual, None, first.weight, None)

    def graph(self, contestant: Contestant | None) -> torch.cuda.CUDAGraph:
        """The products with its norms, which work on the activation of their step; None leaves the norms out."""
        norms = [contestant.bind(self.case, step) for step in self.steps] if contestant else []
        calls: list[Call] = []
        for layer, weight in enumerate(self.weights):
            source, target = self.steps[(layer + 1) % 2].x, self.steps[layer % 2].x
            calls += [partial(torch.mm, source, weight, out=target), *norms[layer % 2 : layer % 2 + 1]]
        return capture(calls, PRODUCTS * len(calls) // LAYERS)


def time_between_gemms(
    case: Case,
    contestants: Mapping[str, Contestant],
    each: Callable[[Callable[[str], torch.cuda.CUDAGraph]], Mapping[str, torch.cuda.CUDAGraph]],
) -> Samples:
    """Microseconds that one norm adds, one figure a round, against the bare chain of the same round.

    each: makes the graphs of those that can be captured.
    """
    chain, without = Chain(case), 0.0
    graphs = each(lambda name: chain.graph(contestants[name]))
    bare = chain.graph(None)

    def measure_bare() -> None:
        nonlocal without
        without = device_us(bare.replay)

    def measure(name: str) -> float:
        return (device_us(graphs[name].replay) - without) / PRODUCTS

    return round_robin(measure, dict.fromkeys(graphs, ROUNDS), measure_bare)
