"""`python -m serving_ops.bench_e2e --turns`: what happens, in order."""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from serving_ops.bench_e2e import cli, envelope, environment, presets, redact
from serving_ops.bench_e2e.plugin_log import is_active
from serving_ops.bench_e2e.progress import Progress
from serving_ops.bench_e2e.result import OURS
from serving_ops.bench_e2e.saving import save
from serving_ops.bench_e2e.server import VARIANTS
from serving_ops.bench_e2e.turns import engine_arguments, options, table
from serving_ops.bench_e2e.turns.load import Load
from serving_ops.bench_e2e.turns.result import EngineRun, TurnsResult
from serving_ops.bench_e2e.turns.run import run


def main(argv: Sequence[str]) -> int:
    """Exit status 1 if an engine failed, 3 if serving_ops was not active: the figures are there then."""
    words = list(argv)
    chosen = options.parse(words)
    console = Console(highlight=False)
    work = Path(tempfile.mkdtemp(prefix="serving-ops-turns-"))
    load = Load(chosen.batch_sizes, chosen.prompt_lens, chosen.decode_steps)
    model = chosen.model or _preset(chosen, work)
    engine_options = engine_arguments.of(chosen, load, model)
    settings = {
        "engine": chosen.engine,
        "model": model,
        "options": engine_options,
        "load": asdict(load),
        "device": chosen.device,
    }
    count = chosen.engines * len(VARIANTS)
    engines: dict[str, list[EngineRun]] = {}
    console.print(f"{count} engines, all alive at once; logs in {work}", soft_wrap=True)

    def measure() -> None:
        with Progress(console, count * (chosen.rounds + 1)) as progress:
            run(settings, chosen.engines, chosen.rounds, work, chosen.start_timeout, progress, engines)

    status = cli.run_to_the_end(measure, console, work)
    if engines and engines[OURS][0].rounds:
        command = environment.command_line(options.COMMAND, words)
        recorded = {key: value for key, value in engine_options.items() if value != model}  # a path of this machine
        result = TurnsResult(
            **envelope.of_served_model(chosen, command, "turns-"),
            engine_options=redact.plain(recorded),
            load=load,
            engines=engines,
        )
        _publish(result, chosen.out, console)
        status = status or (0 if _is_active(result) else cli.INACTIVE)
    if status in (0, cli.INACTIVE) and not chosen.keep_logs:
        shutil.rmtree(work, ignore_errors=True)
    return status


def _preset(chosen: argparse.Namespace, work: Path) -> str:
    return str(presets.write_preset(chosen.preset, work / chosen.preset, chosen.device, chosen.quantization))


def _is_active(result: TurnsResult) -> bool:
    return all(is_active(run.plugin_line) for run in result.engines[OURS])


def _publish(result: TurnsResult, out: Path, console: Console) -> None:
    written = save(result.to_json(), out / f"{result.name}.json")
    console.print(f"wrote {written}", soft_wrap=True)
    if not _is_active(result):
        console.print("[bold red]serving_ops was not active: this compares native with itself[/bold red]")
    shown = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), title=f"{result.model}, {result.mode}")
    for place, title in enumerate(table.header(result)):
        shown.add_column(title, justify="right" if place else "left", no_wrap=True)
    for cells in table.lines(result):
        shown.add_row(*cells)
    console.print(shown)
    console.print(table.note(result), markup=False)
