"""Device time of one call: many calls in one CUDA graph, replayed; host time of one eager call.

Calls of a graph go round over several sets of tensors. In decode the sets stay in the L2, as a served token's
activations do; in prefill they are several times as large as it.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle, islice, repeat
from time import perf_counter_ns
from typing import Any

import torch

from serving_ops.bench_e2e.ops.contestants import Call
from serving_ops.bench_e2e.ops.round_robin import Samples, round_robin

ROUNDS = 15
HOST_ROUNDS = 30
HOST_CALLS = 100  # eager launches up to 9 kernels a call, and the launch queue holds 1024
GRAPH_US = 400.0  # of calls in one graph: the gap around a replay, a few us, is then under 1% of it
MOST_CALLS = 200
BYTES_PER_US = 4.0e6  # a first guess at the bandwidth, only to choose how many calls a graph holds
LAUNCH_US = 1.3  # and at the cost of a small kernel in a graph
SETS_DECODE = 8
SETS_PREFILL = 2  # at least; more until they are L2_MULTIPLE times the L2
L2_MULTIPLE = 4
MOST_SETS = 64  # with gradients; where they are less than the L2 multiplied, the rows stay in it

COPY_BYTES = 2 << 30  # read, and as many written
COPY_ROUNDS = 20


def l2_bytes() -> int:
    return int(torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size)


def release_memory() -> None:
    """Gives back what the last case's graphs held: the largest cases need most of the device."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


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


def calls_for(bytes_moved: int, sets: int) -> int:
    """Calls in one graph, a multiple of the sets."""
    estimate_us = max(LAUNCH_US, bytes_moved / BYTES_PER_US)
    wanted = min(MOST_CALLS, max(1, round(GRAPH_US / estimate_us)))
    return -(-wanted // sets) * sets


def capture(
    calls: Sequence[Call], count: int, *, stream: torch.cuda.Stream | None = None, pool: Any = None
) -> torch.cuda.CUDAGraph:
    """One graph of `count` calls, going round over `calls`.

    Graphs that are never replayed at once may share a memory pool.
    """
    _warm_on_side_stream(calls)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, stream=stream):
        for call in islice(cycle(calls), count):
            call()
    return graph


def _warm_on_side_stream(calls: Sequence[Call]) -> None:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()


def replay_us(graph: torch.cuda.CUDAGraph) -> float:
    """Device time of one replay."""
    return _queued_us(graph.replay)


def time_graphs(graphs: Mapping[str, torch.cuda.CUDAGraph], count: int, rounds: int = ROUNDS) -> Samples:
    """Microseconds of device time a call, one figure a round."""
    return round_robin(lambda name: replay_us(graphs[name]) / count, list(graphs), dict.fromkeys(graphs, rounds))


def time_host(calls: Mapping[str, Call], rounds: int = HOST_ROUNDS) -> Samples:
    """Microseconds of host time a call, the device never waited for within a round."""
    return round_robin(lambda name: _host_us(calls[name]), list(calls), dict.fromkeys(calls, rounds))


def _host_us(call: Call) -> float:
    torch.cuda.synchronize()
    start = perf_counter_ns()
    for _ in repeat(None, HOST_CALLS):
        call()
    elapsed = perf_counter_ns() - start
    torch.cuda.synchronize()
    return elapsed / HOST_CALLS / 1000


def copy_tb_s() -> float:
    """What a large device-to-device copy moves, bytes read plus bytes written, in 1e12 bytes a second."""
    source = torch.empty(COPY_BYTES // 2, dtype=torch.bfloat16, device="cuda").normal_()
    target = torch.empty_like(source)
    times = [_queued_us(lambda: target.copy_(source)) for _ in range(COPY_ROUNDS)]
    return 2 * COPY_BYTES / statistics.median(times) / 1e6


def _queued_us(work: Callable[[], object]) -> float:
    """Between events around the work, queued while the device is still busy with one more of it."""
    start, end = (_event() for _ in range(2))
    work()
    start.record()
    work()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) * 1000.0


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)
