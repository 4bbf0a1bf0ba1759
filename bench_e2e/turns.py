"""Turns: a folder through which the bench asks a process that stays alive, and the order in which it asks several."""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from serving_ops.bench_e2e.process import Child

POLL_SECONDS = 0.05
say = partial(print, flush=True)


def order(names: Sequence[Any], rounds: int) -> Iterator[tuple[int, Any]]:
    """(round, name): whoever went first in one round goes last in the next."""
    for number in range(1, rounds + 1):
        for name in names if number % 2 else reversed(names):
            yield number, name


def answer_all(folder: Path, answer: Callable[[Any], Any]) -> NoReturn:
    """In the process that is asked: says that it is up, as turn 0, and then answers turn after turn."""
    _put(folder / "answer-0", {})
    for turn in itertools.count(1):
        asked = folder / f"ask-{turn}"
        while not asked.exists():
            time.sleep(POLL_SECONDS)
        _put(folder / f"answer-{turn}", answer(json.loads(asked.read_text())))
    raise AssertionError("turns do not end")


@dataclass
class Asked:
    """The process to the bench. name: to a reader; folder: as it was told; timeout: seconds that its start may take."""

    name: str
    child: Child
    folder: Path
    timeout: float
    turn: int = 0

    def start(self) -> None:
        """Waits until it is up. Raises ChildFailed where it ended, or is late."""
        self._answer(self.timeout)
        say(f"{self.name} is up")

    def ask(self, what: Any) -> dict[str, Any]:
        """Its answer. Raises ChildFailed where it ended."""
        self.turn += 1
        _put(self.folder / f"ask-{self.turn}", what)
        return self._answer(math.inf)

    def _answer(self, timeout: float) -> dict[str, Any]:
        path = self.folder / f"answer-{self.turn}"
        self.child.wait_until(path.exists, self.name, timeout)
        return dict(json.loads(path.read_text()))


def say_figures(whose: str, figures: Mapping[str, float]) -> None:
    say(f"{whose}: {', '.join(f'{name} {value:.2f}' for name, value in figures.items())}")


def _put(file: Path, what: Any) -> None:
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(what))
    partial.rename(file)
