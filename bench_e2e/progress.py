"""What the run is doing, all the time: one live line on a terminal, plain lines elsewhere (CI, a pipe)."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.text import Text

HEARTBEAT_SECONDS = 15.0  # between plain lines while a phase lasts


class Progress:
    """`begin` a server's turn, name its `phase`, `tick` while waiting, `end` it with how it went."""

    def __init__(self, console: Console, turns: int) -> None:
        self.console, self.turns = console, turns
        self.done = 0
        self.label = self.phase_name = ""
        self.started = self.turn_started = self.phase_started = self.last_beat = time.monotonic()
        self.live = Live(console=console, refresh_per_second=2, transient=True) if console.is_terminal else None

    def __enter__(self) -> Progress:
        if self.live:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self.live.stop()

    def begin(self, label: str) -> None:
        self.label, self.turn_started = label, time.monotonic()

    def phase(self, name: str) -> None:
        self.phase_name, self.phase_started = name, time.monotonic()
        self.last_beat = self.phase_started
        self._show("")

    def tick(self, last_line: str) -> None:
        if self.live:
            self._show(last_line)
        elif time.monotonic() - self.last_beat > HEARTBEAT_SECONDS:
            self.last_beat = time.monotonic()
            self._show(last_line)

    def phase_seconds(self) -> float:
        return time.monotonic() - self.phase_started

    def end(self, outcome: str) -> None:
        self.done += 1
        self.console.print(f"[green]done[/green] {self.label}: {outcome}", highlight=False)

    def eta(self) -> str:
        """From the turns so far, the first of which also fills the machine's caches."""
        if not self.done:
            return "time left: known after the first server"
        each = (self.turn_started - self.started) / self.done
        left = each * (self.turns - self.done) - (time.monotonic() - self.turn_started)
        return f"about {_clock(max(left, 0))} left"

    def _show(self, last_line: str) -> None:
        elapsed = f"{self.phase_seconds():.0f} s"
        head = f"[{self.done + 1}/{self.turns}] {self.label}: {self.phase_name}, {elapsed}; {self.eta()}"
        lines = [Text(head, style="bold" if self.live else "", no_wrap=True, overflow="ellipsis")]
        if last_line:
            lines.append(Text(f"    {last_line.strip()}", style="dim", no_wrap=True, overflow="ellipsis"))
        shown = Text("\n", no_wrap=True, overflow="ellipsis").join(lines)
        if self.live:
            self.live.update(shown)
        else:
            self.console.print(shown, soft_wrap=True)


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
