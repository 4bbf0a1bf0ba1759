"""The engine's own load generator, with its own TTFT and TPOT: `vllm bench serve`, or SGLang's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from serving_ops.bench_e2e import sglang_server
from serving_ops.bench_e2e.load import Load
from serving_ops.bench_e2e.process import Child, ChildFailed, wait_a_little
from serving_ops.bench_e2e.server import HOST, VLLM, Address


def client_command(
    engine: str, load: Load, address: Address, tokenizer: str, seed: int, patience: int, result: Path
) -> list[str]:
    """`patience`: seconds during which it asks every few seconds whether the server is ready; that request is not
    measured. So it may start with the server, its own 8 s of imports beside the server's."""
    of_engine = sglang_server.client_command if engine == "sglang" else _vllm_command
    return of_engine(load, address, tokenizer, seed, patience, result)


def _vllm_command(load: Load, address: Address, tokenizer: str, seed: int, patience: int, result: Path) -> list[str]:
    return [
        *VLLM,
        *("bench", "serve", "--host", HOST, "--port", str(address.port), "--model", address.name),
        *("--tokenizer", tokenizer, "--dataset-name", "random", "--seed", str(seed)),
        *("--random-input-len", str(load.input_len), "--random-output-len", str(load.output_len)),
        *("--num-prompts", str(load.num_prompts), "--max-concurrency", str(load.concurrency)),
        *("--num-warmups", str(load.num_warmups), "--ready-check-timeout-sec", str(patience)),
        *("--ignore-eos", "--temperature", "0"),
        *("--percentile-metrics", "ttft,tpot", "--metric-percentiles", "90,99"),
        *("--save-result", "--result-dir", str(result.parent), "--result-filename", result.name),
    ]


def await_client(
    engine: str, load: Load, client: Child, server: Child, result: Path, tick: Callable[[str], None]
) -> dict[str, Any]:
    """What the client saved. Raises ChildFailed if it or the server failed, or a request did."""
    while client.ended() is None:
        if server.ended() is not None:
            raise ChildFailed(f"the server ended with status {server.ended()} under load", server)
        tick(client.last_line())
        wait_a_little()
    if client.ended() != 0 or not result.is_file():
        raise ChildFailed(f"the load generator ended with status {client.ended()}", client)
    saved: dict[str, Any] = sglang_server.saved(result) if engine == "sglang" else json.loads(result.read_text())
    if saved["completed"] != load.num_prompts:
        raise ChildFailed(f"{saved['completed']} of {load.num_prompts} requests succeeded", client)
    return saved
