"""The engine's own server, a process for each variant."""

from __future__ import annotations

import http.client
import json
import os
import socket
import sys
import urllib.error
import urllib.request
from typing import Any

from serving_ops.bench_e2e.comparison import BASELINE, OURS
from serving_ops.bench_e2e.engine_arguments import as_words

HOST = "127.0.0.1"
NAME = "bench"  # of the model
VARIANTS = (BASELINE, OURS)
HEALTH_SECONDS, ANSWER_SECONDS = 2.0, 120.0  # that a request may take
QUESTION = "Why is the sky blue? Answer in two sentences."
ANSWER_TOKENS = 60
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
ENGINE_DEFAULTS = {"vllm": {"VLLM_NO_USAGE_STATS": "1", "VLLM_HOST_IP": HOST}, "sglang": {}}
# Threads stay with vLLM's own choice, which spares a core for its server: on 2 cores TPOT is the same as with both
# bound and its p99 is 14% above the median instead of 18 to 30%; TTFT is nearly twice as long.
CPU_DEFAULTS = {
    "vllm": {"VLLM_CPU_KVCACHE_SPACE": "1"},  # GiB
    "sglang": {"SGLANG_USE_CPU_ENGINE": "1"},
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
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
        _fetch(port, "/health", HEALTH_SECONDS)
    except (OSError, http.client.HTTPException):
        return False
    return True


def answer(port: int) -> str:
    """What the model answers to QUESTION, greedily, or why it does not."""
    asked = {"model": NAME, "messages": [{"role": "user", "content": QUESTION}]}
    asked |= {"max_tokens": ANSWER_TOKENS, "temperature": 0}
    try:
        found = json.loads(_fetch(port, "/v1/chat/completions", ANSWER_SECONDS, asked))
        return str(found["choices"][0]["message"]["content"]).strip()
    except urllib.error.HTTPError as error:
        return f"no answer: {error.code}, {error.read()[:200]!r}"
    except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError) as error:
        return f"no answer: {error!r}"


def _fetch(port: int, path: str, timeout: float, asked: dict[str, Any] | None = None) -> bytes:
    """Raises OSError or HTTPException. asked: is sent as JSON."""
    body = json.dumps(asked).encode() if asked else None
    request = urllib.request.Request(f"http://{HOST}:{port}{path}", body, {"Content-Type": "application/json"})
    with DIRECT.open(request, timeout=timeout) as response:
        return bytes(response.read())


def engine_environment(variant: str, device: str, offline: bool, engine: str = "vllm") -> dict[str, str]:
    """The caller's environment, made local and quiet; what the caller set wins, for our variant also SERVING_OPS.

    Keys for APIs are left out: with one in its environment, the server would refuse the bench's own client.
    """
    defaults = {"HF_HUB_OFFLINE": "1" if offline else "0", **ENGINE_DEFAULTS[engine]}
    if device == "cpu":
        defaults |= CPU_DEFAULTS[engine]
    inherited = {name: value for name, value in {**defaults, **os.environ}.items() if not name.endswith("API_KEY")}
    python_path = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    return {
        **inherited,
        "SERVING_OPS": "off" if variant == BASELINE else os.environ.get("SERVING_OPS", "auto"),
        "PYTHONPATH": os.pathsep.join(map(os.path.abspath, python_path)),
        "PYTHONSAFEPATH": "1",  # a checkout in the working directory shadows nothing
        "PYTHONUNBUFFERED": "1",
        "NO_PROXY": f"{HOST},localhost",
        "no_proxy": f"{HOST},localhost",
    }
