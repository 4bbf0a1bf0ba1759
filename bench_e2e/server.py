"""The engine's own server, a process for each variant."""

from __future__ import annotations

import http.client
import json
import os
import secrets
import socket
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving_ops import settings
from serving_ops.bench_e2e import environment
from serving_ops.bench_e2e.comparison import BASELINE, OURS
from serving_ops.bench_e2e.engine_arguments import as_words
from serving_ops.bench_e2e.process import Child, ChildFailed, wait_a_little

HOST = "127.0.0.1"
VARIANTS = {BASELINE: "off", OURS: "auto"}  # value of SERVING_OPS
HEALTH_SECONDS = 2.0  # one health check may take this long
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
ENGINE_DEFAULTS = {"vllm": {"VLLM_NO_USAGE_STATS": "1", "VLLM_HOST_IP": HOST}, "sglang": {}}
# Threads stay with vLLM's own choice, which spares a core for its server: on 2 cores TPOT is the same as with both
# bound and its p99 is 14% above the median instead of 18 to 30%; TTFT is nearly twice as long.
CPU_DEFAULTS = {
    "vllm": {"VLLM_CPU_KVCACHE_SPACE": "1"},  # GiB
    "sglang": {"SGLANG_USE_CPU_ENGINE": "1"},
}


@dataclass(frozen=True)
class Address:
    """Where a server listens, and the model's name, which no other server on this machine answers to."""

    port: int
    name: str


def new_address() -> Address:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return Address(int(probe.getsockname()[1]), f"bench-{secrets.token_hex(4)}")


def serve_command(engine: str, model: str, tokenizer: str, address: Address, arguments: dict[str, Any]) -> list[str]:
    """arguments: those of the engine, by name. The console script of vLLM may lie in no PATH."""
    start = {
        "vllm": ("vllm.entrypoints.cli.main", "serve", model, "--tokenizer", tokenizer),
        "sglang": ("sglang.launch_server", "--model-path", model, "--tokenizer-path", tokenizer),
    }
    bound = ("--host", HOST, "--port", str(address.port), "--served-model-name", address.name)
    return [sys.executable, "-m", *start[engine], *bound, *as_words(engine, arguments)]


def engine_environment(variant: str, device: str, work: Path, offline: bool, engine: str = "vllm") -> dict[str, str]:
    """The caller's environment, made local and quiet; what the caller set wins, and so do ops named in SERVING_OPS.

    Keys for APIs are left out: with one in its environment, the server would refuse the bench's own client.
    """
    defaults = {"HF_HUB_OFFLINE": "1" if offline else "0", **ENGINE_DEFAULTS[engine]}
    if device == "cpu":
        defaults |= CPU_DEFAULTS[engine]
    inherited = {name: value for name, value in {**defaults, **os.environ}.items() if not name.endswith("API_KEY")}
    return {
        **inherited,
        "SERVING_OPS": _switch(variant),
        "PYTHONPATH": _python_path(work, engine),
        "PYTHONSAFEPATH": "1",  # a checkout in the working directory shadows nothing
        "PYTHONUNBUFFERED": "1",
        "NO_PROXY": f"{HOST},localhost",
        "no_proxy": f"{HOST},localhost",
    }


def _switch(variant: str) -> str:
    """The value of SERVING_OPS for a variant: the caller's for ours, if it names ops, without an `off` among them."""
    if variant != OURS or not settings.names_ops():
        return VARIANTS[variant]
    words = os.environ["SERVING_OPS"].split(",")
    return ",".join(word for word in words if word.strip().lower() != "off")


def wait_until_healthy(server: Child, address: Address, timeout: float, tick: Callable[[str], None]) -> None:
    """Until this server answers; `tick` gets the log's last line. Raises ChildFailed: dead, or late."""
    started = time.monotonic()
    while not _healthy(address):
        if server.ended() is not None:
            raise ChildFailed(f"the server ended with status {server.ended()} while starting", server)
        if time.monotonic() - started > timeout:
            raise ChildFailed(f"the server was not up after {timeout:.0f} s", server)
        tick(server.last_line())
        wait_a_little()


def _healthy(address: Address) -> bool:
    """Another program on the port may be healthy, too, but does not know the model's name."""
    try:
        fetch(address, "/health")
        return address.name in [model["id"] for model in fetch(address, "/v1/models")["data"]]
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
        return False


def fetch(address: Address, path: str, timeout: float = HEALTH_SECONDS, asked: dict[str, Any] | None = None) -> Any:
    """The answer, as JSON if there is any, to what is asked as JSON. Raises OSError or http.client.HTTPException."""
    body = None if asked is None else json.dumps(asked).encode()
    request = urllib.request.Request(f"http://{HOST}:{address.port}{path}", body, {"Content-Type": "application/json"})
    with DIRECT.open(request, timeout=timeout) as response:
        found = response.read()
    return json.loads(found) if found else None


def _python_path(work: Path, engine: str) -> str:
    """vLLM's command line asks for the version of a distribution `vllm`, also where that is vllm-cpu."""
    inherited = [os.path.abspath(part) for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    if engine == "vllm" and not environment.version_of("vllm"):
        version = environment.engine_version()
        information = work / "names" / f"vllm-{version}.dist-info"
        information.mkdir(parents=True, exist_ok=True)
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
        inherited.insert(0, str(work / "names"))
    return os.pathsep.join(inherited)
