"""What every run has: turns, an end on signals that leaves no process, a result that is saved before it is shown."""

import shutil
import signal
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from serving_ops.bench_e2e.comparison import Comparison
from serving_ops.bench_e2e.environment import without_secrets
from serving_ops.bench_e2e.plot import write_plot
from serving_ops.bench_e2e.process import ChildFailed
from serving_ops.bench_e2e.result_file import of_run, save

FAILED, INACTIVE, INTERRUPTED = 1, 3, 130  # exit statuses
say = partial(print, flush=True)
SPIN_SECONDS = 1.2
"""For so long a worker of vLLM polls behind its last request, on CPU on the core of the other engines' workers. Without
a pause the first prompts of a turn took up to twice their time (2 cores of an AMD EPYC, vLLM 0.32.0, 2026-11-29)."""


class EngineRun:
    """A run of `serve` or `step`: what it needs, and `measured`, which its `run` fills."""

    def __init__(
        self, chosen: Namespace, words: Sequence[str], load: Any, engine_options: dict[str, Any], labels: dict[str, str]
    ) -> None:
        """load: a dataclass. engine_options: what each engine is built with.

        To be made before a load generator is imported: that sets variables, which would be recorded as the user's.
        """
        self.chosen, self.load, self.engine_options = chosen, load, engine_options
        compiled = "compiled" if chosen.engine == "vllm" else "CUDA graphs"
        about = of_run(chosen.kind, words, chosen.device) | {"engine": chosen.engine}
        about |= {"model": chosen.label, "mode": "eager" if chosen.eager else compiled}
        about |= {"load": asdict(load), "engine_options": without_secrets(engine_options)}
        self.measured = Comparison(about, labels)


def order(names: Sequence[Any], rounds: int, pause: float = 0.0) -> Iterator[tuple[int, Any]]:
    """(round, name): whoever went first in one round goes last in the next. pause: seconds before another's turn."""
    last = None
    for number in range(1, rounds + 1):
        for name in names if number % 2 else reversed(names):
            if last not in (None, name):
                time.sleep(pause)
            yield number, name
            last = name


def say_figures(whose: str, figures: Mapping[str, float]) -> None:
    say(f"{whose}: {', '.join(f'{name} {value:.2f}' for name, value in figures.items())}")


def run(measure: Callable[[Path], None], measured: Comparison, out: Path, keep_logs: bool = False) -> int:
    """Measures in a folder for logs, then saves and shows the result. Exit status 1 if an engine failed, 3 if
    serving_ops was not active: the figures are there then.

    measured: what `measure` fills. Its whole pairs are saved however that ended; without one there is no result.
    """
    work = Path(tempfile.mkdtemp(prefix="serving-ops-bench-"))
    status = 0
    end_as_if_interrupted()
    try:
        measure(work)
    except ChildFailed as error:
        say(f"failed: {error}")
        status = FAILED
    except KeyboardInterrupt:
        say(f"interrupted; no process is left, the logs are in {work}")
        status = INTERRUPTED
    finally:
        whole = min(map(len, measured.pairs.values()))
        for pairs in measured.pairs.values():
            del pairs[whole:]
        if whole:
            publish(measured, out)
    if whole and not measured.active:
        status = status or INACTIVE
    if status in (0, INACTIVE) and not keep_logs:
        shutil.rmtree(work, ignore_errors=True)
    return status


def publish(measured: Comparison, out: Path) -> None:
    written = save(measured.to_json(), out)
    say(f"wrote {written}")
    measured.show(Console(highlight=False))
    try:
        say(f"wrote {write_plot(measured, written.with_suffix('.png'))}")
    except Exception as error:  # the drawing library is another project's, and may be missing
        say(f"no picture: {error!r}")


def end_as_if_interrupted() -> None:
    """Signals that would end us end the processes that we started, too."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
