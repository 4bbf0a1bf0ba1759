"""SGLang's own offline engine. Its schedulers, one for each GPU, are processes; see `sglang_scheduler`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from serving_ops.bench_e2e.turns.device_time import WorkersGpus
from serving_ops.bench_e2e.turns.sglang_scheduler import METHOD


class SglangEngine:
    """`sglang.Engine` with these options."""

    def __init__(self, options: dict[str, Any], folder: Path) -> None:
        import sglang

        self.engine = sglang.Engine(**options)
        self.answers = folder / "answers"
        self.answers.mkdir()
        self.gpu = WorkersGpus(self._ask)

    def _ask(self, question: str) -> list[Any]:
        """SGLang's remote calls answer nothing, so files do: one of each scheduler, all there when the call is over."""
        self.engine.collective_rpc(METHOD, question=question, answers=str(self.answers))
        return [json.loads(answer.read_text()) for answer in self.answers.iterdir()]

    def serve(self, prompts: list[list[int]], output_len: int) -> float:
        """Milliseconds until each of these prompts has so many greedy tokens."""
        asked = {"temperature": 0.0, "max_new_tokens": output_len, "ignore_eos": True}
        start = time.perf_counter()
        self.engine.generate(input_ids=prompts, sampling_params=asked)
        return (time.perf_counter() - start) * 1e3


def start(options: dict[str, Any], folder: Path) -> SglangEngine:
    """An engine that is up."""
    return SglangEngine(options, folder)
