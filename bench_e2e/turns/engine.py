"""One engine in a process of its own, measured whenever it is its turn.

`python -m serving_ops.bench_e2e.turns.engine FOLDER` reads `engine.json` there and talks through the folder.
"""

from __future__ import annotations

import importlib
import itertools
import json
import statistics
import sys
from pathlib import Path
from typing import Protocol

from serving_ops.bench_e2e.turns import load as figure_names
from serving_ops.bench_e2e.turns.device_time import Gpu, decode_step_ms
from serving_ops.bench_e2e.turns.load import Load
from serving_ops.bench_e2e.turns.mailbox import Mailbox

CALLS = 3  # a turn gives the median of so many
FIRST_TOKEN, TOKENS = 5, 900  # prompts are made of this many different ones


class Engine(Protocol):
    """An engine's own offline interface, with the process that has its GPU."""

    gpu: Gpu

    def serve(self, prompts: list[list[int]], output_len: int) -> float:
        """Milliseconds until each of these prompts has so many greedy tokens, all of them asked for at once."""


class Measured:
    """An engine on made-up prompts of exact lengths."""

    def __init__(self, engine: Engine, load: Load, device: str) -> None:
        self.engine, self.load, self.device = engine, load, device

    def serve(self, batch_size: int, prompt_len: int, output_len: int) -> float:
        """Milliseconds until a batch of requests has all its tokens."""
        prompts = [
            [FIRST_TOKEN + (7 * request + place) % TOKENS for place in range(prompt_len)]
            for request in range(batch_size)
        ]
        return self.engine.serve(prompts, output_len)

    def tpot_ms(self, batch_size: int) -> float:
        """Prefill cancels: requests of one token are taken from requests of many."""
        length, steps = self.load.decode_prompt_len, self.load.decode_steps
        first, whole = (self.typical(batch_size, length, tokens) for tokens in (1, 1 + steps))
        return (whole - first) / steps

    def typical(self, batch_size: int, prompt_len: int, output_len: int) -> float:
        return statistics.median(self.serve(batch_size, prompt_len, output_len) for _ in range(CALLS))

    def device_step_ms(self, batch_size: int) -> float:
        return decode_step_ms(
            lambda tokens: self.serve(batch_size, self.load.decode_prompt_len, tokens), self.engine.gpu
        )

    def measure(self) -> dict[str, float]:
        figures = {figure_names.tpot(size): self.tpot_ms(size) for size in self.load.batch_sizes}
        figures |= {figure_names.ttft(length): self.typical(1, length, 1) for length in self.load.prompt_lens}
        if self.device == "cuda":
            figures |= {figure_names.device_step(size): self.device_step_ms(size) for size in self.load.batch_sizes}
        return figures


def main(folder: Path) -> None:
    settings = json.loads((folder / "engine.json").read_text())
    mailbox = Mailbox(folder)
    load = {name: tuple(value) if isinstance(value, list) else value for name, value in settings["load"].items()}
    module = importlib.import_module(f"serving_ops.bench_e2e.turns.{settings['engine']}_engine")
    started = module.start(settings["options"], folder)
    engine = Measured(started, Load(**load), settings["device"])
    engine.measure()  # warms up
    mailbox.answer(0, {})
    for turn in itertools.count(1):
        mailbox.await_turn(turn)
        mailbox.answer(turn, engine.measure())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
