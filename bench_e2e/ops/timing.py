"""Microseconds of one call, in alternating rounds: what the machine does meanwhile meets every contestant alike.

On CPU a round is a window of about a millisecond. On CUDA it is a replay of a graph of calls, over several sets of
tensors: in decode they stay in the L2, as a served token's activations do; in prefill they are several times as large.

A norm between two matrix products is a graph of products and norms, less one of the products alone. So it also holds
what the norm's launch hides or fails to hide behind its neighbours.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from timeit import Timer
from typing import Any

import torch

from serving_ops.bench_e2e.device_time import event_ms
from serving_ops.bench_e2e.ops.cases import Case
from serving_ops.bench_e2e.ops.contestants import Call, Contestant
from serving_ops.bench_e2e.ops.inputs import Inputs, make_inputs

Samples = dict[str, list[float]]  # contestant -> one figure a round

ROUNDS, FEWEST_ROUNDS = 30, 5
WINDOW_S = 1e-3  # of calls on the CPU between two clock reads; a read costs about 50 ns
BUDGET_S = 1.2  # a contestant, at one size on the CPU: eager takes 200 ms a call at 4096 x 4096
HOST_CALLS = 100  # a round; eager launches up to 9 kernels a call, and the launch queue holds 1024
MOST_CALLS = 200  # in one graph
GRAPH_BYTES = 1.6e9  # that the calls of one graph move, about 400 us: the gap around a replay is then under 1% of it
SETS_DECODE = 8
SETS_PREFILL = 2  # at least; more until they are L2_MULTIPLE times the L2
L2_MULTIPLE = 4
MOST_SETS = 64  # with gradients; where they are less than the L2 multiplied, the rows stay in it
COPY_BYTES = 2 << 30  # read, and as many written
LAYERS = 8  # of weights, 33 MB each at 4096 x 4096 bf16: every product reads its own from memory, as a model's do
PRODUCTS = 64  # in one graph, about 0.6 ms
BARE = "the products alone"


def round_robin(measure: Callable[[str], float], names: Iterable[str], rounds: int = ROUNDS) -> Samples:
    """Everyone once a round, each round starting one further on."""
    order, samples = list(names), {name: [] for name in names}  # type: tuple[list[str], Samples]
    for _ in range(rounds):
        for name in order:
            samples[name].append(measure(name))
        order = [*order[1:], *order[:1]]
    return samples


def time_on_cpu(calls: Mapping[str, Call]) -> Samples:
    """As many rounds as the budget pays for."""
    costs_s = {name: min(Timer(call).repeat(3, 1)) for name, call in calls.items()}
    counts = {name: max(1, round(WINDOW_S / cost)) for name, cost in costs_s.items()}

    def measure(name: str) -> float:
        calls[name]()  # whoever ran before has left its own data in the caches
        return Timer(calls[name]).timeit(counts[name]) / counts[name] * 1e6

    round_s = sum((counts[name] + 1) * cost for name, cost in costs_s.items())
    rounds = round(min(ROUNDS, max(FEWEST_ROUNDS, BUDGET_S * len(calls) / (round_s or 1.0))))
    return round_robin(measure, calls, rounds)


def time_host(calls: Mapping[str, Call]) -> Samples:
    """Of the host, the device never waited for within a round."""

    def measure(name: str) -> float:
        torch.cuda.synchronize()
        return Timer(calls[name]).timeit(HOST_CALLS) / HOST_CALLS * 1e6

    return round_robin(measure, calls)


def sets_for(set_bytes: int, l2: int, *, trained: bool = False) -> int:
    """Sets of tensors to rotate over: about half the L2 if one set fits there, else several times it.

    trained: several times the L2 where MOST_SETS allow it. What a backward pass reads, its forward pass left long ago.
    """
    several = -(-L2_MULTIPLE * l2 // set_bytes)
    if trained:
        return min(MOST_SETS, max(1, several))
    if set_bytes <= l2 // 2:
        return min(SETS_DECODE, max(2, l2 // 2 // set_bytes))
    return max(SETS_PREFILL, several)


def times_for(bytes_moved: int, sets: int) -> int:
    """How often one graph goes round over the sets, a call each."""
    return -(-min(MOST_CALLS, max(1, round(GRAPH_BYTES / bytes_moved))) // sets)


def capture(calls: Sequence[Call], pool: Any) -> torch.cuda.CUDAGraph:
    """One graph of the calls, on the current stream, which is not the default one.

    A backward pass runs on the stream of its forward pass, so that both are on this one. pool: shared by graphs that
    are never replayed at once; eager's backward pass takes 30 GiB for one call at 32768 x 32768.
    """
    for call in calls:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, stream=torch.cuda.current_stream()):
        for call in calls:
            call()
    return graph


def time_graphs(graphs: Mapping[str, torch.cuda.CUDAGraph], count: int) -> Samples:
    """Of the device. count: calls in a graph."""
    return round_robin(lambda name: 1e3 * event_ms(graphs[name].replay) / count, graphs)


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


def time_between_products(graphs: Mapping[str, torch.cuda.CUDAGraph]) -> Samples:
    """What one norm adds, one figure a round, against the bare chain of the same round."""
    samples = time_graphs(graphs, PRODUCTS)
    bare = samples.pop(BARE)
    return {name: [us - without for us, without in zip(values, bare, strict=True)] for name, values in samples.items()}


def copy_tb_s() -> float:
    """What a large device-to-device copy moves, bytes read plus bytes written, in 1e12 bytes a second."""
    from triton.testing import do_bench

    source = torch.empty(COPY_BYTES // 2, dtype=torch.bfloat16, device="cuda").normal_()
    target = torch.empty_like(source)
    return float(2 * COPY_BYTES / do_bench(lambda: target.copy_(source), return_mode="median") / 1e9)
