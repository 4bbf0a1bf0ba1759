"""What one norm adds between two matrix products of a decode step: the figure that a served token feels.

One graph runs product, norm, product, norm, ...; another the products alone. Their difference, over the
number of norms, also holds what the norm's launch hides or fails to hide behind its neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from serving_ops.bench_e2e.ops.cases import Case
from serving_ops.bench_e2e.ops.contestants import Call, Contestant
from serving_ops.bench_e2e.ops.inputs import Inputs, make_inputs
from serving_ops.bench_e2e.ops.round_robin import Samples, round_robin
from serving_ops.bench_e2e.ops.timing_cuda import capture, replay_us

LAYERS = 8  # of weights, 33 MB each at 4096 x 4096 bf16: every product reads its own from memory, as a model's do
PRODUCTS = 64  # in one graph, about 0.6 ms
ROUNDS = 25  # of a difference of two larger times: more than for a graph of norms alone


class Chain:
    """Products through LAYERS weights, back and forth between two activations."""

    def __init__(self, case: Case) -> None:
        size, dtype = case.size, case.torch_dtype
        self.weights = [_projection(size, dtype) for _ in range(LAYERS)]
        self.steps = [make_inputs(case, "cuda")]
        first = self.steps[0]
        # The second step has its own activation and the same residual stream.
        self.steps.append(Inputs(torch.empty_like(first.x).normal_(), first.residual, None, first.weight, None))

    def graph(self, norms: list[Call] | None) -> torch.cuda.CUDAGraph:
        """`norms[i]` works on the activation of step i; None leaves the norms out."""
        calls: list[Call] = []
        for layer in range(LAYERS):
            source, target = self.steps[(layer + 1) % 2].x, self.steps[layer % 2].x
            calls.append(_product(source, self.weights[layer], target))
            if norms is not None:
                calls.append(norms[layer % 2])
        return capture(calls, PRODUCTS * len(calls) // LAYERS)


def time_between_gemms(bare: torch.cuda.CUDAGraph, graphs: Mapping[str, torch.cuda.CUDAGraph]) -> Samples:
    """Microseconds that one norm adds, one figure a round, against the bare chain of the same round."""
    without = 0.0

    def measure_bare() -> None:
        nonlocal without
        without = replay_us(bare)

    return round_robin(
        lambda name: (replay_us(graphs[name]) - without) / PRODUCTS,
        list(graphs),
        dict.fromkeys(graphs, ROUNDS),
        before_round=measure_bare,
    )


def bind_chain(contestant: Contestant, case: Case, chain: Chain) -> list[Call]:
    return [contestant.bind(case, step) for step in chain.steps]


def _projection(size: int, dtype: torch.dtype) -> Tensor:
    return torch.empty((size, size), dtype=dtype, device="cuda").normal_(0.0, size**-0.5)


def _product(source: Tensor, weight: Tensor, target: Tensor) -> Call:
    return lambda: torch.mm(source, weight, out=target)
