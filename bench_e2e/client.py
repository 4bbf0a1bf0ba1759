"""The engine's own load generator, `vllm bench serve` or SGLang's, in one process that stays alive for all turns.

A process for each turn would spend 8 s on imports, on cores that the servers need. `python -m
serving_ops.bench_e2e.client FOLDER ENGINE` answers each turn with the figures of the words that it is asked with.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from serving_ops.bench_e2e.turns import answer_all

METRICS = tuple(f"{figure}_{metric}_ms" for metric in ("ttft", "tpot") for figure in ("mean", "median", "p90", "p99"))
"""The names that `vllm bench serve` gives them."""
LABELS = {
    f"{figure}_{metric}_ms": f"{metric.upper()} {figure}"
    for metric in ("ttft", "tpot")
    for figure in ("median", "p90", "p99")
}


@dataclass(frozen=True)
class ServeLoad:
    """What a server is asked in one turn, greedily and without an early end.

    input_len: exactly, of random prompts; None for the questions of `chat`, which only vLLM's generator asks.
    """

    num_prompts: int
    input_len: int | None  # tokens
    output_len: int  # tokens
    concurrency: int  # requests in flight

    def words(
        self, engine: str, host: str, port: int, name: str, tokenizer: str, seed: int, warmups: int, chats: Path
    ) -> list[str]:
        """Of the generator's command line. warmups: requests before the measured ones. chats: the questions' file."""
        if self.input_len is None:
            prompts = [*CHAT, "--dataset-path", str(chats), "--sharegpt-output-len", str(self.output_len)]
        else:
            lengths = ("--random-input-len", str(self.input_len), "--random-output-len", str(self.output_len))
            prompts = [*RANDOM[engine], *lengths]
        return [
            *("--host", host, "--port", str(port), "--model", name, "--tokenizer", tokenizer, "--seed", str(seed)),
            *(*prompts, "--num-prompts", str(self.num_prompts), "--max-concurrency", str(self.concurrency)),
            *("--ready-check-timeout-sec", "0", *WORDS[engine], str(warmups)),
        ]


CHAT = (  # every turn has the same questions
    *("--backend", "openai-chat", "--endpoint", "/v1/chat/completions"),
    *("--dataset-name", "sharegpt", "--disable-shuffle"),
)
RANDOM = {
    "vllm": ("--dataset-name", "random"),
    # Prompts go as tokens, of exact lengths.
    "sglang": ("--dataset-name", "random-ids", "--tokenize-prompt", "--random-range-ratio", "1"),
}
WORDS = {
    "vllm": (
        *("--ignore-eos", "--temperature", "0"),
        *("--percentile-metrics", "ttft,tpot", "--metric-percentiles", "90,99", "--num-warmups"),
    ),
    "sglang": ("--backend", "sglang", "--warmup-requests"),
}


def _vllm() -> Callable[[list[str], Path], dict[str, float]]:
    from vllm.benchmarks import serve
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    serve.get_tokenizer = functools.cache(serve.get_tokenizer)  # once for all turns: a load takes 0.3 s
    parser = FlexibleArgumentParser()
    serve.add_cli_args(parser)
    return lambda words, folder: serve.main(parser.parse_args(words))  # type: ignore[no-any-return]


def _sglang() -> Callable[[list[str], Path], dict[str, float]]:
    from sglang.benchmark import serving

    def ask(words: list[str], folder: Path) -> dict[str, float]:
        """The generator appends a line to its file."""
        saved = folder / "figures.jsonl"
        sys.argv = ["serving", *words, "--output-file", str(saved)]
        serving.cli_main()
        found: dict[str, float] = json.loads(saved.read_text().splitlines()[-1])
        return found

    return ask


def main(folder: Path, engine: str) -> None:
    ask = {"vllm": _vllm, "sglang": _sglang}[engine]()

    def answer(words: list[str]) -> dict[str, float]:
        found = ask(words, folder)
        return {name: float(found[name]) for name in ("completed", *METRICS)}

    answer_all(folder, answer)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
