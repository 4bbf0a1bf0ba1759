"""Turns: a pipe through which the bench asks a process that stays alive, and the order in which it asks several."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

from serving_ops.bench_e2e.process import Children

say = partial(print, flush=True)


def order(names: Sequence[Any], rounds: int) -> Iterator[tuple[int, Any]]:
    """(round, name): whoever went first in one round goes last in the next."""
    for number in range(1, rounds + 1):
        for name in names if number % 2 else reversed(names):
            yield number, name


class Asked:
    """A command that is asked over a pipe, of which it gets a descriptor, behind the name of the folder with its log.

    It finds what it is told in the pipe, sends a message when it is up, and then an answer to each question.
    """

    def __init__(
        self, children: Children, command: Sequence[str], variables: Mapping[str, str], folder: Path, told: Any
    ) -> None:
        self.name = folder.name
        self.pipe, self.its_end = Pipe()  # open here too, its end does not close when it dies: wait_until says so
        self.pipe.send(told)
        end = self.its_end.fileno()
        self.child = children.start([*command, str(folder), str(end)], variables, folder / "log", folder.parent, (end,))

    def wait(self, timeout: float) -> None:
        """Until it is up, for so many seconds. Raises ChildFailed where it ended, or is late."""
        self._answer(timeout)
        say(f"{self.name} is up")

    def ask(self, what: Any) -> Any:
        """Its answer. Raises ChildFailed where it ended."""
        self.pipe.send(what)
        return self._answer(math.inf)

    def _answer(self, timeout: float) -> Any:
        self.child.wait_until(self.pipe.poll, self.name, timeout)
        return self.pipe.recv()


def say_figures(whose: str, figures: Mapping[str, float]) -> None:
    say(f"{whose}: {', '.join(f'{name} {value:.2f}' for name, value in figures.items())}")
