"""What the run is doing, all the time: what happens now, how it went, and a sign of life while one waits."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial

HEARTBEAT_SECONDS = 15.0  # between lines while a phase lasts
say = partial(print, flush=True)


class Progress:
    """`phase` names what happens now, `tick` says that one waits, `done` ends a step with how it went."""

    def __init__(self, steps: int) -> None:
        self.steps, self.count, self.name, self.last_beat = steps, 0, "", time.monotonic()

    def phase(self, name: str, more: str = "") -> None:
        self.name, self.last_beat = name, time.monotonic()
        say(f"[{self.count + 1}/{self.steps}] {name} {more}")

    def tick(self, last_line: str) -> None:
        if time.monotonic() - self.last_beat > HEARTBEAT_SECONDS:
            self.phase(self.name, last_line.strip())

    def done(self, outcome: Mapping[str, float] | str) -> None:
        self.count += 1
        figures = outcome if isinstance(outcome, str) else ", ".join(f"{k} {v:.2f}" for k, v in outcome.items())
        say(f"done {self.name}: {figures}")
