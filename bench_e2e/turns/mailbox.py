"""How the bench and an engine's process talk: a folder in which one asks for turn N and the other answers it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

POLL_SECONDS = 0.05


class Mailbox:
    """Turn 0 is the start: the engine answers it unasked, once it is warm."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def ask(self, turn: int) -> None:
        (self.folder / f"ask-{turn}").touch()

    def answered(self, turn: int) -> dict[str, Any] | None:
        """What the engine measured in this turn, None while it has not."""
        path = self.folder / f"answer-{turn}.json"
        if not path.exists():
            return None
        answer: dict[str, Any] = json.loads(path.read_text())
        return answer

    def await_turn(self, turn: int) -> None:
        while not (self.folder / f"ask-{turn}").exists():
            time.sleep(POLL_SECONDS)

    def answer(self, turn: int, figures: dict[str, Any]) -> None:
        partial = self.folder / f"answer-{turn}.partial"
        partial.write_text(json.dumps(figures))
        partial.rename(self.folder / f"answer-{turn}.json")
