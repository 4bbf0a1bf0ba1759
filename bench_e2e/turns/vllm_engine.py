"""vLLM's own offline engine, its scheduler in this process. Under tensor parallelism, its workers are processes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from serving_ops.bench_e2e.turns.device_time import WorkersGpus, ask_own_gpu


class VllmEngine:
    """`vllm.LLM` with these options."""

    def __init__(self, options: dict[str, Any]) -> None:
        from vllm import LLM

        self.llm = LLM(**options)
        self.gpu = WorkersGpus(lambda question: self.llm.collective_rpc(ask_own_gpu, args=(question,)))

    def serve(self, prompts: list[list[int]], output_len: int) -> float:
        """Milliseconds until each of these prompts has so many greedy tokens."""
        from vllm import SamplingParams

        asked = SamplingParams(temperature=0.0, max_tokens=output_len, ignore_eos=True, detokenize=False)
        start = time.perf_counter()
        self.llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], asked, use_tqdm=False)
        return (time.perf_counter() - start) * 1e3


def start(options: dict[str, Any], folder: Path) -> VllmEngine:
    """An engine that is up."""
    return VllmEngine(options)
