"""`python -m serving_ops.bench_e2e --turns`: what happens, in order."""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from serving_ops.bench_e2e import cli, environment, presets, redact
from serving_ops.bench_e2e.plugin_log import is_active
from serving_ops.bench_e2e.process import ChildFailed
from serving_ops.bench_e2e.progress import Progress
from serving_ops.bench_e2e.result import OURS
from serving_ops.bench_e2e.server import VARIANTS
from serving_ops.bench_e2e.turns import engine_arguments, options, table
from serving_ops.bench_e2e.turns.load import Load
from serving_ops.bench_e2e.turns.result import TurnsResult
from serving_ops.bench_e2e.turns.run import run


def main(argv: Sequence[str]) -> int:
    """Exit status 1 if an engine failed, 3 if serving_ops was not active: the figures are there then."""
    words = list(argv)
    if words[:1] == ["table"]:
        return table.main(words[1:])
    chosen = options.parse(words)
    console = Console(highlight=False)
    cli.end_as_if_interrupted()
    work = Path(tempfile.mkdtemp(prefix="serving-ops-turns-"))
    keep_work = True
    try:
        result = _measure(chosen, words, work, console)
        _publish(result, chosen.out, console)
        keep_work = chosen.keep_logs
        return 0 if _is_active(result) else cli.INACTIVE
    except ChildFailed as error:
        console.print(f"[bold red]failed[/bold red]: {error}", soft_wrap=True)
        return cli.FAILED
    except KeyboardInterrupt:
        console.print(f"[bold]interrupted[/bold]; no engine is left, the logs are in {work}", soft_wrap=True)
        return cli.INTERRUPTED
    finally:
        if not keep_work:
            shutil.rmtree(work, ignore_errors=True)


def _measure(chosen: argparse.Namespace, words: list[str], work: Path, console: Console) -> TurnsResult:
    load = Load(chosen.batch_sizes, chosen.prompt_lens, chosen.decode_steps)
    model = _model(chosen, work)
    engine_options = engine_arguments.of(chosen, load, model)
    settings = {
        "engine": chosen.engine,
        "model": model,
        "options": engine_options,
        "load": asdict(load),
        "device": chosen.device,
    }
    variants = [*VARIANTS, *chosen.floors]
    count = chosen.engines * len(variants)
    console.print(f"{count} engines, all alive at once; logs in {work}", soft_wrap=True)
    with Progress(console, count * (chosen.rounds + 1)) as progress:
        engines = run(settings, variants, chosen.engines, chosen.rounds, work, chosen.start_timeout, progress)
    now = datetime.now(UTC)
    label = Path(chosen.model).name if chosen.model else chosen.preset
    mode = "eager" if chosen.eager else "compiled"
    return TurnsResult(
        name=chosen.name or f"{now:%Y%m%d-%H%M}-turns-{chosen.engine}-{chosen.device}-{label}-{mode}",
        date=now.isoformat(timespec="seconds"),
        command=environment.command_line(options.COMMAND, words),
        engine_options=redact.plain({key: value for key, value in engine_options.items() if value != model}),
        engine=chosen.engine,
        model=redact.value_of("model", chosen.model or f"preset {chosen.preset}"),
        device=chosen.device,
        eager=chosen.eager,
        load=load,
        versions=environment.versions(),
        hardware=environment.hardware(),
        engines=engines,
    )


def _model(chosen: argparse.Namespace, work: Path) -> str:
    """A folder or a hub name."""
    if chosen.model:
        return str(chosen.model)
    return str(presets.write_preset(chosen.preset, work / chosen.preset, chosen.device))


def _is_active(result: TurnsResult) -> bool:
    return all(is_active(run.plugin_line) for run in result.engines[OURS])


def _publish(result: TurnsResult, out: Path, console: Console) -> None:
    if not _is_active(result):
        console.print("[bold red]serving_ops was not active: this compares native with itself[/bold red]")
    shown = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), title=f"{result.model}, {result.mode}")
    for place, title in enumerate(table.header(result)):
        shown.add_column(title, justify="right" if place else "left", no_wrap=True)
    for cells in table.lines(result):
        shown.add_row(*cells)
    console.print(shown)
    console.print(table.note(result), markup=False)
    out.mkdir(parents=True, exist_ok=True)
    written = out / f"{result.name}.json"
    written.write_text(result.to_json())
    console.print(f"wrote {written}", soft_wrap=True)
