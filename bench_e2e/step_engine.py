"""One engine in a process of its own, by its own offline interface, measured whenever it is its turn.

`python -m serving_ops.bench_e2e.step_engine FOLDER` reads `engine.json` there and talks through the folder.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from serving_ops.bench_e2e import step_load
from serving_ops.bench_e2e.device_time import PROFILED_STEPS, ask_own_gpu, decode_step_ms, layer, slowest
from serving_ops.bench_e2e.sglang_scheduler import METHOD
from serving_ops.bench_e2e.step_load import LAYER, StepLoad
from serving_ops.bench_e2e.turns import answer_all

CALLS = 3  # a turn gives the median of so many
FIRST_TOKEN, TOKENS = 5, 900  # prompts are made of this many different ones


class VllmEngine:
    """`vllm.LLM`, its scheduler in this process. Under tensor parallelism its workers are processes.

    generate: so many greedy tokens for each of the prompts, all of them asked for at once.
    """

    def __init__(self, model: str, options: dict[str, Any], folder: Path) -> None:
        from vllm import LLM

        self.llm = LLM(model, **options)

    def ask(self, question: str) -> Any:
        return slowest(self.llm.collective_rpc(ask_own_gpu, args=(question,)))

    def generate(self, prompts: list[list[int]], output_len: int) -> None:
        from vllm import SamplingParams

        asked = SamplingParams(temperature=0.0, max_tokens=output_len, ignore_eos=True, detokenize=False)
        self.llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], asked, use_tqdm=False)


class SglangEngine:
    """`sglang.Engine`. Its schedulers, one for each GPU, are processes; see `sglang_scheduler`."""

    def __init__(self, model: str, options: dict[str, Any], folder: Path) -> None:
        import sglang

        self.engine = sglang.Engine(model_path=model, **options)
        self.answers = folder / "answers"
        self.answers.mkdir()

    def ask(self, question: str) -> Any:
        """SGLang's remote calls answer nothing, so files do: one of each scheduler, all there when the call is over."""
        self.engine.collective_rpc(METHOD, question=question, answers=str(self.answers))
        return slowest([json.loads(answer.read_text()) for answer in self.answers.iterdir()])

    def generate(self, prompts: list[list[int]], output_len: int) -> None:
        asked = {"temperature": 0.0, "max_new_tokens": output_len, "ignore_eos": True}
        self.engine.generate(input_ids=prompts, sampling_params=asked)


ENGINES = {"vllm": VllmEngine, "sglang": SglangEngine}


class Measured:
    """An engine on made-up prompts of exact lengths."""

    def __init__(self, engine: VllmEngine | SglangEngine, load: StepLoad, device: str) -> None:
        self.engine, self.load, self.device = engine, load, device

    def serve(self, batch_size: int, prompt_len: int, output_len: int) -> float:
        """Milliseconds until a batch of requests has all its tokens."""
        prompts = [
            [FIRST_TOKEN + (7 * request + place) % TOKENS for place in range(prompt_len)]
            for request in range(batch_size)
        ]
        start = time.perf_counter()
        self.engine.generate(prompts, output_len)
        return (time.perf_counter() - start) * 1e3

    def tpot_ms(self, batch_size: int) -> float:
        """Prefill cancels: requests of one token are taken from requests of many."""
        length, steps = self.load.decode_prompt_len, self.load.decode_steps
        first, whole = (self.typical(batch_size, length, tokens) for tokens in (1, 1 + steps))
        return (whole - first) / steps

    def typical(self, batch_size: int, prompt_len: int, output_len: int) -> float:
        return statistics.median(self.serve(batch_size, prompt_len, output_len) for _ in range(CALLS))

    def device_step_ms(self, batch_size: int) -> float:
        length = self.load.decode_prompt_len
        return decode_step_ms(lambda tokens: self.serve(batch_size, length, tokens), self.engine.ask)

    def layer(self) -> dict[str, Any]:
        batch_size, length = self.load.batch_sizes[0], self.load.decode_prompt_len
        steps = min(self.load.decode_steps, PROFILED_STEPS)
        kernels = layer(lambda tokens: self.serve(batch_size, length, tokens), self.engine.ask, steps)
        return {"batch_size": batch_size, "kernels": kernels}

    def measure(self) -> dict[str, float]:
        sizes = self.load.batch_sizes
        figures = {step_load.tpot(size): self.tpot_ms(size) for size in sizes}
        figures |= {step_load.ttft(length): self.typical(1, length, 1) for length in self.load.prompt_lens}
        if self.device == "cuda":
            figures |= {step_load.device_step(size): self.device_step_ms(size) for size in sizes}
        return figures


def main(folder: Path) -> None:
    settings = json.loads((folder / "engine.json").read_text())
    started = ENGINES[settings["engine"]](settings["model"], settings["options"], folder)
    engine = Measured(started, StepLoad(**settings["load"]), settings["device"])
    engine.measure()  # warms up
    answer_all(folder, lambda asked: engine.layer() if asked == LAYER else engine.measure())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
