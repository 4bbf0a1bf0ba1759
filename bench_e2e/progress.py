"""What the run is doing, all the time: live lines on a terminal, plain lines elsewhere (CI, a pipe)."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType

from rich import progress
from rich.console import Console
from rich.markup import escape

HEARTBEAT_SECONDS = 15.0  # between plain lines while a phase lasts


class Progress:
    """`phase` names what happens now, `tick` says that one waits, `done` ends a step with how it went."""

    def __init__(self, steps: int, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)
        self.steps, self.count, self.name = steps, 0, ""
        self.last_beat = time.monotonic()
        columns = ("{task.description}", progress.BarColumn(), progress.MofNCompleteColumn())
        times = (progress.TimeElapsedColumn(), "left", progress.TimeRemainingColumn())
        shown = self.console.is_terminal
        self.bar = progress.Progress(
            *columns, *times, console=self.console, transient=True, disable=not shown, refresh_per_second=2
        )
        self.task = self.bar.add_task("starting", total=steps)

    def __enter__(self) -> Progress:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def phase(self, name: str) -> None:
        self.name, self.last_beat = name, time.monotonic()
        self.bar.update(self.task, description=escape(name))
        if self.bar.disable:
            self._print("")

    def tick(self, last_line: str) -> None:
        if self.bar.disable and time.monotonic() - self.last_beat > HEARTBEAT_SECONDS:
            self.last_beat = time.monotonic()
            self._print(last_line.strip())

    def done(self, outcome: Mapping[str, float] | str) -> None:
        self.count += 1
        self.bar.advance(self.task)
        figures = outcome if isinstance(outcome, str) else ", ".join(f"{k} {v:.2f}" for k, v in outcome.items())
        self.console.print(f"[green]done[/green] {escape(self.name)}: {figures}", soft_wrap=True)

    def _print(self, last_line: str) -> None:
        self.console.print(f"[{self.count + 1}/{self.steps}] {self.name} {last_line}", markup=False, soft_wrap=True)
