"""Turns: a folder in which the bench asks a process that stays alive, and the order in which it asks several."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from serving_ops.bench_e2e.process import Child, ChildFailed, wait_a_little
from serving_ops.bench_e2e.progress import Progress

POLL_SECONDS = 0.05


def order(names: Sequence[Any], rounds: int) -> Iterator[tuple[int, Any]]:
    """(round, name): whoever went first in one round goes last in the next."""
    for number in range(1, rounds + 1):
        for name in names if number % 2 else reversed(names):
            yield number, name


class Mailbox:
    """One side asks for turn N, the other answers it. Turn 0 is the start: it is answered unasked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def ask(self, turn: int, what: Any = None) -> None:
        self._put(f"ask-{turn}", what)

    def answer(self, turn: int, what: Any) -> None:
        self._put(f"answer-{turn}", what)

    def answered(self, turn: int) -> dict[str, Any] | None:
        """None while it has not."""
        path = self.folder / f"answer-{turn}"
        return json.loads(path.read_text()) if path.exists() else None

    def asked(self, turn: int) -> Any:
        """Waits until it is asked for; what for."""
        path = self.folder / f"ask-{turn}"
        while not path.exists():
            time.sleep(POLL_SECONDS)
        return json.loads(path.read_text())

    def _put(self, name: str, what: Any) -> None:
        partial = self.folder / f"{name}.partial"
        partial.write_text(json.dumps(what))
        partial.rename(self.folder / name)


def answer(
    who: str,
    child: Child,
    mailbox: Mailbox,
    turn: int,
    progress: Progress,
    *,
    timeout: float | None = None,
    needs: Sequence[Child] = (),
) -> dict[str, Any]:
    """Waits for the child's answer. Raises ChildFailed if it, or one that it needs, ended, or it is late."""
    started = time.monotonic()
    while (found := mailbox.answered(turn)) is None:
        for process in (child, *needs):
            if process.ended() is not None:
                raise ChildFailed(f"{who} ended with status {process.ended()}", process)
        if timeout is not None and time.monotonic() - started > timeout:
            raise ChildFailed(f"{who} was not up after {timeout:.0f} s", child)
        progress.tick(child.last_line())
        wait_a_little()
    return found
