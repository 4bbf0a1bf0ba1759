"""The experiment: all engines start, then every round gives each one turn, in an order that alternates."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from serving_ops.bench_e2e.plugin_log import startup_line
from serving_ops.bench_e2e.process import Child, ChildFailed, Children, wait_a_little
from serving_ops.bench_e2e.progress import Progress
from serving_ops.bench_e2e.server import VARIANTS, engine_environment
from serving_ops.bench_e2e.turns import sglang_scheduler
from serving_ops.bench_e2e.turns.mailbox import Mailbox
from serving_ops.bench_e2e.turns.result import EngineRun

ENGINE = [sys.executable, "-m", "serving_ops.bench_e2e.turns.engine"]

Name = tuple[str, int]  # variant, place
Running = dict[Name, tuple[Child, Mailbox]]


def run(
    settings: dict[str, Any],
    engines: int,
    rounds: int,
    work: Path,
    start_timeout: float,
    progress: Progress,
    measured: dict[str, list[EngineRun]],
) -> None:
    """So many engines of each variant, over `rounds`; `settings` is what engine.py reads. Raises ChildFailed.

    measured: gets the engines once all are up, and every whole round as it is over.
    """
    places = range(1, engines + 1)
    names = [(variant, place) for place in places for variant in VARIANTS]
    with Children() as children:
        running: Running = {}
        for name in _started(names, settings, work, children, running):
            _await(running, name, 0, start_timeout, progress)
        runs = {name: EngineRun(startup_line(child.lines()), []) for name, (child, _) in running.items()}
        measured |= {variant: [runs[variant, place] for place in places] for variant in VARIANTS}
        for number in range(1, rounds + 1):
            for name, figures in _round(running, number, progress).items():
                runs[name].rounds.append(figures)


def _started(
    names: list[Name], settings: dict[str, Any], work: Path, children: Children, running: Running
) -> Iterator[Name]:
    """Engines whose answer is to be awaited: on CUDA all start at once; on CPU each takes all the cores."""
    for name in names:
        running[name] = _start(name, settings, work, children)
        if settings["device"] == "cpu":
            yield name
    if settings["device"] != "cpu":
        yield from names


def _start(name: Name, settings: dict[str, Any], work: Path, children: Children) -> tuple[Child, Mailbox]:
    variant, place = name
    folder = work / f"{variant}-{place}"
    folder.mkdir()
    (folder / "engine.json").write_text(json.dumps(settings))
    offline = Path(settings["model"]).is_dir()
    variables = engine_environment(variant, settings["device"], work, offline, settings["engine"])
    if settings["engine"] == "sglang":
        _for_sglang(variables, work)
    else:
        variables["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the scheduler in the same process: less noise
    child = children.start([*ENGINE, str(folder)], variables, folder / "log", cwd=work)
    return child, Mailbox(folder)


def _for_sglang(variables: dict[str, str], work: Path) -> None:
    beside_ours = sglang_scheduler.write_entry_point(work / "names")
    variables["PYTHONPATH"] = os.pathsep.join(filter(None, [str(beside_ours), variables["PYTHONPATH"]]))
    if variables.get("SGLANG_PLUGINS"):  # the user's choice, beside which this one is to load; empty means all
        variables["SGLANG_PLUGINS"] += f",{sglang_scheduler.NAME}"


def _round(running: Running, number: int, progress: Progress) -> dict[Name, dict[str, float]]:
    """Whoever went first in one round goes last in the next."""
    order = list(running) if number % 2 else list(reversed(running))
    return {name: _await(running, name, number, None, progress) for name in order}


def _await(running: Running, name: Name, turn: int, timeout: float | None, progress: Progress) -> dict[str, float]:
    """What the engine answers to a turn; turn 0 is its start."""
    child, mailbox = running[name]
    who = " ".join(map(str, name))
    progress.begin(f"round {turn}, {who}" if turn else who)
    progress.phase("measuring" if turn else "starting")
    if turn:
        mailbox.ask(turn)
    while (answer := mailbox.answered(turn)) is None:
        if child.ended() is not None:
            raise ChildFailed(f"{who} ended with status {child.ended()}", child)
        if timeout is not None and progress.phase_seconds() > timeout:
            raise ChildFailed(f"{who} was not up after {timeout:.0f} s", child)
        progress.tick(child.last_line())
        wait_a_little()
    progress.end(", ".join(f"{figure} {value:.3f}" for figure, value in answer.items()) or "up")
    return answer
