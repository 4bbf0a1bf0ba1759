"""A stand-in for vLLM that starts in a blink: its server answers /health, its load generator gives made-up times."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import serving_ops
from serving_ops.bench_e2e.comparison import Comparison
from serving_ops.bench_e2e.environment import RECORDED
from serving_ops.bench_e2e.server import LABELS

STAND_IN = """
import http.server, json, os, pathlib, sys, time

def option(name):
    return sys.argv[sys.argv.index(name) + 1]

class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(401 if "VLLM_API_KEY" in os.environ else 200)
        self.end_headers()

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"choices": [{"message": {"content": "It scatters."}}]}).encode())

behaviour = os.environ.get("STAND_IN", "works")
print("pid", os.getpid(), flush=True)
if behaviour == "dies":
    sys.exit("the weights are made of cheese")
if behaviour == "hangs":
    time.sleep(600)
if os.environ["SERVING_OPS"] == "auto" and behaviour != "inactive":
    print("INFO serving_ops 0.1.0 (auto, cpu): on for 5 of 5 RMSNorm; prewarmed nothing", flush=True)
http.server.HTTPServer((option("--host"), int(option("--port"))), Health).serve_forever()
"""
GENERATOR = """
import atexit, os, time, urllib.request

atexit.register(print, "leaked 64 types")  # as Triton, which a load generator imports

def get_tokenizer():
    pass

def add_cli_args(parser):
    for name in ("num-prompts", "port", "seed", "num-warmups"):
        parser.add_argument(f"--{name}", type=int)

def main(arguments):
    urllib.request.urlopen(f"http://127.0.0.1:{arguments.port}/health").close()
    print("asked with", arguments.port, arguments.seed, arguments.num_warmups, flush=True)
    behaviour = os.environ.get("STAND_IN", "works")
    if behaviour == "stalls":
        time.sleep(600)
    if behaviour == "fails":
        raise SystemExit("no request came back")
    times = {f"{f}_{m}_ms": 10.0 for f in ("mean", "median", "p90", "p99") for m in ("ttft", "tpot")}
    return {"completed": arguments.num_prompts - (behaviour == "loses"), **times}
"""
PARSER = """
import argparse

class FlexibleArgumentParser(argparse.ArgumentParser):
    def parse_args(self, words):
        return self.parse_known_args(words)[0]
"""
MODULES = {"entrypoints/openai/api_server": STAND_IN, "benchmarks/serve": GENERATOR, "utils/argparse_utils": PARSER}

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def stand_in(tmp_path: Path) -> dict[str, str]:
    """An environment in which `vllm` is the stand-in, and our plugin is registered with it."""
    site = tmp_path / "site"
    for name, text in MODULES.items():
        module = site / "vllm" / f"{name}.py"
        module.parent.mkdir(parents=True)
        module.write_text(text)
    for folder in (site / "vllm").rglob("*/"):
        (folder / "__init__.py").touch()
    (site / "vllm" / "__init__.py").touch()
    information = site / "vllm-0.0.1+cpu.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.0.1+cpu\n")
    (information / "entry_points.txt").write_text(
        "[vllm.general_plugins]\nserving_ops = serving_ops.integrations.vllm:register\n"
    )
    checkout = Path(serving_ops.__file__).parents[1]
    ours = {"PYTHONPATH": os.pathsep.join([str(site), str(checkout)])}
    ours |= {"XDG_CACHE_HOME": str(tmp_path / "cache"), "PIP_NO_INDEX": "1"}  # no model of the registry
    # vLLM sets variables of its own in the process that imports it, which another test may have done.
    return {name: value for name, value in os.environ.items() if not name.startswith(RECORDED)} | ours


@pytest.fixture
def bench(stand_in: dict[str, str], tmp_path: Path) -> Run:
    """`bench(*words, **environment)` runs `python -m serving_ops.bench_e2e` on the stand-in."""

    def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "serving_ops.bench_e2e", *words]
        return subprocess.run(
            command, env={**stand_in, **environment}, cwd=tmp_path, capture_output=True, text=True, timeout=120
        )

    return run


@pytest.fixture
def result() -> Comparison:
    """Two pairs in which serving_ops takes 0.8 and 0.9 of native's time."""
    run = {
        "schema": 2,
        "kind": "serve",
        "date": "2026-11-20T12:00:00+00:00",
        "command": "python -m serving_ops.bench_e2e serve --pairs 2",
        "engine": "vllm",
        "model": "preset dense",
        "device": "cpu",
        "mode": "eager",
        "method": "4 requests a turn.",
        "versions": {"serving_ops": "0.1.0", "vllm": "0.32.0+cpu", "torch": "2.13.0+cpu"},
        "hardware": {"cpu": "Some CPU", "cores": 2, "memory_gib": 23.5, "gpu": None},
    }
    on = "serving_ops 0.1.0 (auto, cpu): on for 5 of 5 RMSNorm"
    times = {"native": (100.0, 100.0), "serving_ops": (80.0, 90.0)}
    pairs = {variant: [dict.fromkeys(LABELS, time) for time in of] for variant, of in times.items()}
    return Comparison(run, LABELS, pairs, {"native": [None], "serving_ops": [on]})


@pytest.fixture(autouse=True)
def without_what_an_engine_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM sets variables of its own when it is imported, in whichever test was first, and commands record them."""
    for name in [name for name in os.environ if name.startswith(RECORDED)]:
        monkeypatch.delenv(name)
