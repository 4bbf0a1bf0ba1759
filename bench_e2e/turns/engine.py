"""One vLLM engine in a process of its own, measured whenever it is its turn.

`python -m serving_ops.bench_e2e.turns.engine FOLDER` reads `engine.json` there and talks through the folder.
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from serving_ops.bench_e2e.turns import floor
from serving_ops.bench_e2e.turns import load as figure_names
from serving_ops.bench_e2e.turns.device_time import decode_step_ms
from serving_ops.bench_e2e.turns.load import Load
from serving_ops.bench_e2e.turns.mailbox import Mailbox

CALLS = 3  # a turn gives the median of so many
FIRST_TOKEN, TOKENS = 5, 900  # prompts are made of this many different ones


class Engine:
    """vLLM's own offline engine, greedy, on made-up prompts of exact lengths."""

    def __init__(self, options: dict[str, Any], load: Load, device: str) -> None:
        from vllm import LLM

        self.llm, self.load, self.device = LLM(**options), load, device

    def serve(self, batch_size: int, prompt_len: int, output_len: int) -> float:
        """Milliseconds until a batch of requests has all its tokens."""
        from vllm import SamplingParams

        asked = SamplingParams(temperature=0.0, max_tokens=output_len, ignore_eos=True, detokenize=False)
        prompts = [
            {"prompt_token_ids": [FIRST_TOKEN + (7 * request + place) % TOKENS for place in range(prompt_len)]}
            for request in range(batch_size)
        ]
        start = time.perf_counter()
        self.llm.generate(prompts, asked, use_tqdm=False)
        return (time.perf_counter() - start) * 1e3

    def tpot_ms(self, batch_size: int) -> float:
        """Prefill cancels: requests of one token are taken from requests of many."""
        length, steps = self.load.decode_prompt_len, self.load.decode_steps
        first, whole = (self.typical(batch_size, length, tokens) for tokens in (1, 1 + steps))
        return (whole - first) / steps

    def typical(self, batch_size: int, prompt_len: int, output_len: int) -> float:
        return statistics.median(self.serve(batch_size, prompt_len, output_len) for _ in range(CALLS))

    def device_step_ms(self, batch_size: int) -> float:
        return decode_step_ms(lambda tokens: self.serve(batch_size, self.load.decode_prompt_len, tokens))

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
    if settings["variant"] == floor.VARIANT:
        floor.remove_norms()
    engine = Engine(settings["options"], Load(**load), settings["device"])
    engine.measure()  # warms up
    mailbox.answer(0, {})
    for turn in itertools.count(1):
        mailbox.await_turn(turn)
        mailbox.answer(turn, engine.measure())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
