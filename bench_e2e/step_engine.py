"""One engine of `step` in a process, by its own offline interface: its load, and what it measures at its turn.

`python -m serving_ops.bench_e2e.step_engine FOLDER PIPE` is started, told and asked by `process.Asked`.
"""

import fcntl
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from serving_ops.bench_e2e.device_time import PROFILED_STEPS, Decode, around, ask_own_gpu, decode_step_ms, slowest

CALLS = 3  # a turn gives the median of so many
FIRST_TOKEN, TOKENS = 5, 900  # prompts are made of this many different ones
HOST = "host_loop_ms"
tpot, ttft, device_step = "tpot_ms_batch_{}".format, "ttft_ms_prompt_{}".format, "decode_step_device_ms_batch_{}".format
"""Names of figures, by the number of requests in a batch or of tokens in a prompt."""
ASKED = "ask_for_serving_ops_bench"  # the method that SGLang's schedulers are given
LAYER = "layer"  # what an engine is asked for instead of figures: the kernels of one layer


@dataclass(frozen=True)
class StepLoad:
    """TPOT for each batch size, with the device time of a decode step on CUDA; TTFT of one prompt of each length.

    On CUDA also the speed of the host, on which TPOT and TTFT depend.
    """

    batch_sizes: Sequence[int]  # requests decoding together
    prompt_lens: Sequence[int]  # tokens
    decode_steps: int  # over which a TPOT is taken
    decode_prompt_len: int = 128  # tokens; the same for every batch size

    @property
    def context(self) -> int:
        """Tokens that the longest request needs."""
        return 1 + max(*self.prompt_lens, self.decode_prompt_len + self.decode_steps)

    @property
    def labels(self) -> dict[str, str]:
        """Name of each figure in JSON -> what a person reads, in the order of the table."""
        found = {}
        for size in self.batch_sizes:
            found[tpot(size)] = f"TPOT, batch {size}"
            found[device_step(size)] = f"device time of a decode step, batch {size}"
        found |= {ttft(length): f"TTFT, {length} tokens" for length in self.prompt_lens}
        return {**found, HOST: "the host: a fixed loop of Python"}

    def method(self, engines: int, rounds: int) -> str:
        of_each = f"{engines} engine{'s' if engines > 1 else ''} of each variant"
        turns = f"{rounds} round{'s' if rounds > 1 else ''}"
        return (
            f"{of_each}, alive at once, in turns over {turns}: median over engines of their medians over rounds "
            f"[lowest-highest]. TPOT over {self.decode_steps} steps after a prompt of {self.decode_prompt_len} tokens"
        )


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
    """`sglang.Engine`. Its schedulers, one for each GPU, are processes."""

    def __init__(self, model: str, options: dict[str, Any], folder: Path) -> None:
        from sglang.srt.entrypoints.engine import Engine

        Engine.run_scheduler_process_func = staticmethod(run_scheduler)
        self.engine = Engine(model_path=model, **options)
        self.answers = folder / "answers"
        self.answers.mkdir()

    def ask(self, question: str) -> Any:
        """SGLang's remote calls answer nothing, so files do: one of each scheduler, all there when the call is over."""
        self.engine.collective_rpc(ASKED, question=question, answers=str(self.answers))
        return slowest([json.loads(answer.read_text()) for answer in self.answers.iterdir()])

    def generate(self, prompts: list[list[int]], output_len: int) -> None:
        asked = {"temperature": 0.0, "max_new_tokens": output_len, "ignore_eos": True}
        self.engine.generate(input_ids=prompts, sampling_params=asked)


def run_scheduler(*arguments: Any) -> None:
    """SGLang's process of a scheduler, which gets the method ASKED."""
    from sglang.srt.managers.scheduler import Scheduler, run_scheduler_process

    setattr(Scheduler, ASKED, answer_from_scheduler)
    run_scheduler_process(*arguments)


def answer_from_scheduler(scheduler: Any, question: str, answers: str) -> None:
    Path(answers, str(os.getpid())).write_text(json.dumps(ask_own_gpu(scheduler, question)))


ENGINES = {"vllm": VllmEngine, "sglang": SglangEngine}


class Measured:
    """An engine on made-up prompts of exact lengths."""

    def __init__(self, engine: VllmEngine | SglangEngine, load: StepLoad, device: str) -> None:
        self.engine, self.load, self.device = engine, load, device

    def serve(self, batch_size: int, prompt_len: int, output_len: int) -> float:
        """Milliseconds until a batch of requests has all its tokens."""
        places = range(prompt_len)
        prompts = [[FIRST_TOKEN + (7 * n + place) % TOKENS for place in places] for n in range(batch_size)]
        start = time.perf_counter()
        self.engine.generate(prompts, output_len)
        return (time.perf_counter() - start) * 1e3

    def typical(self, batch_size: int, prompt_len: int, output_len: int) -> float:
        return statistics.median(self.serve(batch_size, prompt_len, output_len) for _ in range(CALLS))

    def tpot_ms(self, batch_size: int) -> float:
        """Prefill cancels: requests of one token are taken from requests of many."""
        length, steps = self.load.decode_prompt_len, self.load.decode_steps
        first, whole = (self.typical(batch_size, length, tokens) for tokens in (1, 1 + steps))
        return (whole - first) / steps

    def decode(self, batch_size: int) -> Decode:
        return lambda tokens: self.serve(batch_size, self.load.decode_prompt_len, tokens)

    def layer(self) -> dict[str, Any]:
        size, tokens = self.load.batch_sizes[0], 1 + min(self.load.decode_steps, PROFILED_STEPS)
        return {"batch_size": size, "kernels": around(self.decode(size), self.engine.ask, tokens, "profile", "layer")}

    def measure(self) -> dict[str, float]:
        sizes = self.load.batch_sizes
        figures = {tpot(size): self.tpot_ms(size) for size in sizes}
        figures |= {ttft(length): self.typical(1, length, 1) for length in self.load.prompt_lens}
        if self.device == "cuda":
            figures |= {device_step(size): decode_step_ms(self.decode(size), self.engine.ask) for size in sizes}
            figures[HOST] = self.engine.ask(HOST)
        return figures


if __name__ == "__main__":
    pipe = Connection(int(sys.argv[2]))
    told = pipe.recv()
    started = ENGINES[told["engine"]](told["model"], told["options"], Path(sys.argv[1]))
    engine = Measured(started, StepLoad(**told["load"]), told["device"])
    # Engines on several GPUs warm up one after the other. An all-reduce spins until each of its GPUs has come to it:
    # six engines on four GPUs, all at once, were not through after 100 s.
    with Path(sys.argv[1]).with_name("warm-up").open("a") as lock:
        if told["gpus"] > 1:
            fcntl.flock(lock, fcntl.LOCK_EX)
        engine.measure()
    pipe.send("up")
    while True:
        pipe.send(engine.layer() if pipe.recv() == LAYER else engine.measure())
