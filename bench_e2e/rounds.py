"""The experiment: every round serves each variant once, in a fresh process, in an order that alternates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from serving_ops.bench_e2e import sglang_server
from serving_ops.bench_e2e.client import await_client, client_command
from serving_ops.bench_e2e.load import METRICS, Load
from serving_ops.bench_e2e.plugin_log import is_active, startup_line
from serving_ops.bench_e2e.process import Children
from serving_ops.bench_e2e.progress import Progress
from serving_ops.bench_e2e.result import Round
from serving_ops.bench_e2e.server import Address, engine_environment, new_address, serve_command, wait_until_healthy

SPARE_TOKENS = 64  # room in the context beside prompt and answer
FIRST_SEED = 1000


@dataclass(frozen=True)
class Experiment:
    engine: str
    model: str  # a folder or a hub name
    tokenizer: str
    device: str
    eager: bool
    load: Load
    variants: tuple[str, ...]
    rounds: int
    port: int | None  # None: any free one
    start_timeout: int  # seconds
    serve_args: tuple[str, ...]
    offline: bool  # nothing is to come from the hub

    def serve_command(self, address: Address) -> list[str]:
        context = self.load.input_len + self.load.output_len + SPARE_TOKENS
        if self.engine == "sglang":
            on_cpu = 2 * context * self.load.concurrency if self.device == "cpu" else None
            return sglang_server.serve_command(
                self.model, self.tokenizer, address, context, self.eager, on_cpu, self.serve_args
            )
        return serve_command(self.model, address, context, self.eager, self.serve_args)


def turns(variants: Sequence[str], rounds: int) -> Iterator[tuple[int, int, str]]:
    """(round, place, variant): whoever went first in one round goes last in the next."""
    for number in range(1, rounds + 1):
        order = variants if number % 2 else tuple(reversed(variants))
        for place, variant in enumerate(order, start=1):
            yield number, place, variant


def run_rounds(experiment: Experiment, work: Path, progress: Progress, measured: dict[str, list[Round]]) -> None:
    """Add every round to those of its variant; logs and the client's own JSON stay in `work`. Raises ChildFailed."""
    for number, place, variant in turns(experiment.variants, experiment.rounds):
        progress.begin(f"round {number} of {experiment.rounds}, {variant}")
        entry = _one_turn(experiment, work, progress, variant, number, place)
        measured[variant].append(entry)
        times = entry.times_ms
        progress.end(f"TTFT {times['median_ttft_ms']:.1f} ms, TPOT {times['median_tpot_ms']:.2f} ms (medians)")


def _one_turn(experiment: Experiment, work: Path, progress: Progress, variant: str, number: int, place: int) -> Round:
    stem = f"round{number}-{variant}"
    address = new_address(experiment.port)
    seed = FIRST_SEED + number  # the same prompts for both variants of a round
    result = work / f"{stem}-client.json"
    engine, load = experiment.engine, experiment.load
    environment = engine_environment(variant, experiment.device, work, experiment.offline, engine)
    served = experiment.serve_command(address)
    asked = client_command(engine, load, address, experiment.tokenizer, seed, experiment.start_timeout, result)
    with Children() as children:
        server = children.start(served, environment, work / f"{stem}-server.log", cwd=work)
        client = children.start(asked, environment | {"SERVING_OPS": "off"}, work / f"{stem}-client.log", cwd=work)
        progress.phase("server starting")
        start_s = wait_until_healthy(server, address, experiment.start_timeout, progress.tick)
        progress.phase("client running")
        saved = await_client(engine, load, client, server, result, progress.tick)
        progress.phase("server stopping")
    line = startup_line(server.lines())
    times = {metric: float(saved[metric]) for metric in METRICS}
    return Round(number, place, seed, round(start_s, 1), is_active(line), line, times)
