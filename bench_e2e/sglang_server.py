"""SGLang's server and its own load generator: the words of both command lines, and what the generator saved."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from serving_ops.bench_e2e.load import Load
from serving_ops.bench_e2e.presets import SGLANG_ON_CPU, as_words
from serving_ops.bench_e2e.server import HOST, Address


def serve_command(
    model: str, tokenizer: str, address: Address, context: int, eager: bool, on_cpu: int | None, extra: Sequence[str]
) -> list[str]:
    """`extra` comes last, so that it wins over what stands here. Prefixes are not cached: a prompt that was
    warmed up would be answered without its prefill.

    on_cpu: None on a GPU, where SGLang has its own choice; else tokens that the cache is to hold, since SGLang would
    fill the machine's memory with it, which takes a minute.
    """
    on_device = {"disable_cuda_graph": eager} if on_cpu is None else {**SGLANG_ON_CPU, "max_total_tokens": on_cpu}
    return [
        *(sys.executable, "-m", "sglang.launch_server", "--model-path", model, "--tokenizer-path", tokenizer),
        *("--host", HOST, "--port", str(address.port), "--served-model-name", address.name),
        *("--context-length", str(context), "--disable-radix-cache"),
        *as_words(on_device),
        *extra,
    ]


def client_command(load: Load, address: Address, tokenizer: str, seed: int, patience: int, result: Path) -> list[str]:
    """`patience`: seconds during which it asks whether the server is ready. Prompts go as tokens, of exact lengths."""
    return [
        *(sys.executable, "-m", "sglang.benchmark.serving", "--backend", "sglang"),
        *("--host", HOST, "--port", str(address.port), "--model", address.name, "--tokenizer", tokenizer),
        *("--dataset-name", "random-ids", "--tokenize-prompt", "--random-range-ratio", "1", "--seed", str(seed)),
        *("--random-input-len", str(load.input_len), "--random-output-len", str(load.output_len)),
        *("--num-prompts", str(load.num_prompts), "--max-concurrency", str(load.concurrency)),
        *("--warmup-requests", str(load.num_warmups), "--ready-check-timeout-sec", str(patience)),
        *("--output-file", str(result)),
    ]


def saved(result: Path) -> dict[str, Any]:
    """The one line that the generator appended, with the names that `vllm bench serve` gives its figures."""
    found: dict[str, Any] = json.loads(result.read_text().splitlines()[-1])
    return found
