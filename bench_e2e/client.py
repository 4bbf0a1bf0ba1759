"""`vllm bench serve`: vLLM's own load generator and its own TTFT and TPOT."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving_ops.bench_e2e.process import Child, ChildFailed, wait_a_little
from serving_ops.bench_e2e.server import HOST, SERVED_NAME, VLLM

METRICS = tuple(f"{figure}_{metric}_ms" for metric in ("ttft", "tpot") for figure in ("mean", "median", "p90", "p99"))


@dataclass(frozen=True)
class Load:
    """What is asked of the server. Lengths are exact: random prompts, greedy, and no early end."""

    num_prompts: int
    input_len: int  # tokens
    output_len: int  # tokens
    concurrency: int  # requests in flight
    num_warmups: int  # requests before the measured ones


def client_command(load: Load, port: int, tokenizer: str, seed: int, patience: int, result: Path) -> list[str]:
    """`patience`: seconds during which it asks every 5 s whether the server is ready; that request is not
    measured. So it may start with the server, its own 8 s of imports beside the server's."""
    return [
        *VLLM,
        *("bench", "serve", "--host", HOST, "--port", str(port), "--model", SERVED_NAME),
        *("--tokenizer", tokenizer, "--dataset-name", "random", "--seed", str(seed)),
        *("--random-input-len", str(load.input_len), "--random-output-len", str(load.output_len)),
        *("--num-prompts", str(load.num_prompts), "--max-concurrency", str(load.concurrency)),
        *("--num-warmups", str(load.num_warmups), "--ready-check-timeout-sec", str(patience)),
        *("--ignore-eos", "--temperature", "0"),
        *("--percentile-metrics", "ttft,tpot", "--metric-percentiles", "90,99"),
        *("--save-result", "--result-dir", str(result.parent), "--result-filename", result.name),
    ]


def await_client(client: Child, server: Child, result: Path, tick: Callable[[str], None]) -> dict[str, Any]:
    """What `vllm bench serve` saved. Raises ChildFailed if it or the server failed, or a request did."""
    while client.ended() is None:
        if server.ended() is not None:
            raise ChildFailed(f"the server ended with status {server.ended()} under load", server)
        tick(client.last_line())
        wait_a_little()
    if client.ended() != 0 or not result.is_file():
        raise ChildFailed(f"vllm bench serve ended with status {client.ended()}", client)
    saved: dict[str, Any] = json.loads(result.read_text())
    if saved.get("failed", 0) or saved["completed"] != saved["num_prompts"]:
        raise ChildFailed(f"{saved['completed']} of {saved['num_prompts']} requests succeeded", client)
    return saved
