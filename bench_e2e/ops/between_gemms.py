"""What one norm adds between two matrix products of a decode step: the figure that a served token feels.

One graph runs product, norm, product, norm, ...; another the products alone. Their difference, over the
number of norms, also holds what the norm's launch hides or fails to hide behind its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from serving_ops.bench_e2e.ops.cases import Case
from serving_ops.bench_e2e.ops.contestants import Call, Contestant
from serving_ops.bench_e2e.ops.inputs import Inputs, make_inputs
from serving_ops.bench_e2e.ops.timing import Samples, time_graphs

LAYERS = 8  # of weights, 33 MB each at 4096 x 4096 bf16: every product reads its own from memory, as a model's do
PRODUCTS = 64  # in one graph, about 0.6 ms
BARE = "the products alone"


def chains(case: Case, device: str = "cuda") -> Callable[[Contestant | None], list[Call]]:
    """Makes the products through LAYERS weights, back and forth between two activations, each with a contestant's norm
    behind it, which works on the product's activation."""
    made = {"dtype": case.torch_dtype, "device": device}
    weights = [torch.empty(case.size, case.size, **made).normal_(0.0, case.size**-0.5) for _ in range(LAYERS)]
    first = make_inputs(case, device)
    steps = first, Inputs(first.call | {"x": torch.empty_like(first.x).normal_()})  # of one residual stream

    def chain(contestant: Contestant | None) -> list[Call]:
        norms = [contestant.bind(case, step) for step in steps] if contestant else []
        calls: list[Call] = []
        for layer, weight in enumerate(weights):
            source, target = steps[(layer + 1) % 2].x, steps[layer % 2].x
            calls += [partial(torch.mm, source, weight, out=target), *norms[layer % 2 : layer % 2 + 1]]
        return calls * (PRODUCTS // LAYERS)

    return chain


def time_between_gemms(graphs: dict[str, torch.cuda.CUDAGraph]) -> Samples:
    """Microseconds that one norm adds, one figure a round, against the bare chain of the same round."""
    samples = time_graphs(graphs, PRODUCTS)
    bare = samples.pop(BARE)
    return {name: [us - without for us, without in zip(values, bare, strict=True)] for name, values in samples.items()}
