"""`python -m serving_ops.bench_e2e`: what happens, in order."""

from __future__ import annotations

import argparse
import importlib
import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from rich.console import Console

from serving_ops.bench_e2e import envelope, environment, options, presets, redact, table
from serving_ops.bench_e2e.load import Load
from serving_ops.bench_e2e.plot import write_plot
from serving_ops.bench_e2e.process import ChildFailed
from serving_ops.bench_e2e.progress import Progress
from serving_ops.bench_e2e.report import print_result
from serving_ops.bench_e2e.result import Result, Round
from serving_ops.bench_e2e.rounds import Experiment, run_rounds
from serving_ops.bench_e2e.saving import save
from serving_ops.bench_e2e.server import Address

BUSY_SHARE = 0.25  # of the cores: on 2 cores, one compiler beside a server slows it by up to 3 times
FAILED, INACTIVE, INTERRUPTED = 1, 3, 130  # exit statuses
BENCHES = ("ops", "training", "turns")  # each an option that takes over the command line


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; the exit status. 3: the figures are there, but serving_ops was not active."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["table"]:
        return table.main(words[1:])
    if words[:1] == ["one-batch"]:
        from serving_ops.bench_e2e import one_batch

        return one_batch.main(words[1:])
    for bench in BENCHES:
        if f"--{bench}" in words:  # it needs torch, which takes seconds to import
            module = importlib.import_module(f"serving_ops.bench_e2e.{bench}.cli")
            return int(module.main([word for word in words if word != f"--{bench}"]))
    return _serve_and_measure(words)


def _serve_and_measure(words: list[str]) -> int:
    chosen = options.parse(words)
    console = Console(highlight=False)
    work = Path(tempfile.mkdtemp(prefix="serving-ops-bench-"))
    experiment = _experiment(chosen, work)
    rounds: dict[str, list[Round]] = {variant: [] for variant in chosen.variants}
    servers = len(chosen.variants) * chosen.rounds
    console.print(f"{servers} servers, one after another; logs in {work}", soft_wrap=True)
    if environment.busy_cores() > BUSY_SHARE * environment.hardware().cores:
        console.print("[yellow]the machine is busy with other work: the figures will be noisy[/yellow]")

    def measure() -> None:
        with Progress(console, servers) as progress:
            run_rounds(experiment, work, progress, rounds)

    status = run_to_the_end(measure, console, work)
    whole = min(map(len, rounds.values()))
    if whole:
        measured = {variant: entries[:whole] for variant, entries in rounds.items()}
        result = _result(chosen, experiment, words, measured, work)
        _publish(result, chosen.out, console)
        status = status or (0 if result.active() else INACTIVE)
    if status == 0 and not chosen.keep_logs:
        shutil.rmtree(work, ignore_errors=True)
    return status


def run_to_the_end(measure: Callable[[], None], console: Console, work: Path) -> int:
    """The exit status, and in words what ended `measure` early. What was measured until then can still be saved."""
    end_as_if_interrupted()
    try:
        measure()
    except ChildFailed as error:
        console.print("[bold red]failed[/bold red]: ", end="")
        console.print(str(error), markup=False, soft_wrap=True)
        return FAILED
    except KeyboardInterrupt:
        console.print(f"[bold]interrupted[/bold]; no process is left, the logs are in {work}", soft_wrap=True)
        return INTERRUPTED
    return 0


def _experiment(chosen: argparse.Namespace, work: Path) -> Experiment:
    serve_args = chosen.serve_args
    if chosen.model:
        model = tokenizer = chosen.model
    else:
        folder = presets.write_preset(chosen.preset, work / chosen.preset, chosen.device, chosen.quantization)
        model, tokenizer = str(folder), str(presets.tokenizer_of(folder))
        needed = presets.preset_serve_args(chosen.preset, chosen.device, chosen.engine, chosen.quantization)
        serve_args = [*needed, *(["--tokenizer", tokenizer] if chosen.engine == "vllm" else []), *serve_args]
    return Experiment(
        engine=chosen.engine,
        model=model,
        tokenizer=tokenizer,
        device=chosen.device,
        eager=chosen.eager,
        load=Load(
            num_prompts=chosen.num_prompts,
            input_len=chosen.input_len,
            output_len=chosen.output_len,
            concurrency=chosen.concurrency,
            num_warmups=chosen.num_warmups,
        ),
        variants=chosen.variants,
        rounds=chosen.rounds,
        port=chosen.port,
        start_timeout=chosen.start_timeout,
        serve_args=tuple(serve_args),
        offline=Path(model).is_dir(),
    )


def _result(
    chosen: argparse.Namespace,
    experiment: Experiment,
    words: list[str],
    rounds: dict[str, list[Round]],
    work: Path,
) -> Result:
    served = shlex.join(redact.words(experiment.serve_command(Address("PORT", "NAME"))))
    return Result(
        **envelope.of_served_model(chosen, environment.command_line(options.COMMAND, words)),
        serve_command=served.replace(f"{work}/", "").replace(sys.executable, "python"),
        load=experiment.load,
        rounds=rounds,
    )


def _publish(result: Result, out: Path, console: Console) -> None:
    written = save(result.to_json(), out / f"{result.name}.json")
    console.print(f"wrote {written}", soft_wrap=True)
    print_result(result, console)
    try:
        console.print(f"wrote {write_plot(result, written.with_suffix('.png'))}", soft_wrap=True)
    except Exception as error:  # the drawing library is another project's, and may be missing
        console.print(f"no picture: {error!r}", markup=False, soft_wrap=True)


def end_as_if_interrupted() -> None:
    """Signals that would end us end the processes that we started, too."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt
