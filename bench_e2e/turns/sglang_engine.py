"""SGLang's own offline engine. Its scheduler, which has the GPU, is a process of its own; see `sglang_scheduler`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from serving_ops.bench_e2e.turns.sglang_scheduler import METHOD


class SchedulersGpu:
    """The scheduler's GPU, asked through SGLang's remote calls; those answer nothing, so a file does."""

    def __init__(self, engine: Any, folder: Path) -> None:
        self.engine, self.answer = engine, folder / "answer.json"

    def _ask(self, question: str) -> Any:
        self.engine.collective_rpc(METHOD, question=question, answer=str(self.answer))
        return json.loads(self.answer.read_text())

    def count_replays(self) -> None:
        self._ask("count_replays")

    def replays(self) -> int:
        return int(self._ask("replays"))

    def replayed_ms(self) -> float:
        return float(self._ask("replayed_ms"))

    def profile(self) -> None:
        self._ask("profile")

    def busy_ms(self) -> float:
        return float(self._ask("busy_ms"))


class SglangEngine:
    """`sglang.Engine` with these options."""

    def __init__(self, options: dict[str, Any], folder: Path) -> None:
        import sglang

        self.engine = sglang.Engine(**options)
        self.gpu = SchedulersGpu(self.engine, folder)

    def serve(self, prompts: list[list[int]], output_len: int) -> float:
        """Milliseconds until each of these prompts has so many greedy tokens."""
        asked = {"temperature": 0.0, "max_new_tokens": output_len, "ignore_eos": True}
        start = time.perf_counter()
        self.engine.generate(input_ids=prompts, sampling_params=asked)
        return (time.perf_counter() - start) * 1e3


def start(options: dict[str, Any], variant: str, folder: Path) -> SglangEngine:
    """An engine that is up. What a variant is, its scheduler reads from the environment."""
    return SglangEngine(options, folder)
