"""A stand-in for vLLM that starts in a blink: `serve` answers /health, `bench serve` writes made-up times."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import serving_ops
from serving_ops.bench_e2e.environment import RECORDED, Hardware
from serving_ops.bench_e2e.load import METRICS, Load
from serving_ops.bench_e2e.result import Result, Round

STAND_IN = """
import http.server, json, os, pathlib, sys, time

def option(name):
    return sys.argv[sys.argv.index(name) + 1]

class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(401 if "VLLM_API_KEY" in os.environ and self.path.startswith("/v1") else 200)
        self.end_headers()
        self.wfile.write(json.dumps({"data": [{"id": option("--served-model-name")}]}).encode())

if sys.argv[1] == "serve":
    behaviour = os.environ.get("STAND_IN", "works")
    print("pid", os.getpid(), flush=True)
    if behaviour == "dies":
        sys.exit("the weights are made of cheese")
    if behaviour == "hangs":
        time.sleep(600)
    if os.environ["SERVING_OPS"] == "auto" and behaviour != "inactive":
        print("INFO serving_ops 0.1.0 (auto, cpu): on for 5 of 5 RMSNorm; prewarmed nothing", flush=True)
    http.server.HTTPServer((option("--host"), int(option("--port"))), Health).serve_forever()
else:
    prompts = int(option("--num-prompts"))
    times = {f"{f}_{m}_ms": 10.0 for f in ("mean", "median", "p90", "p99") for m in ("ttft", "tpot")}
    saved = {"completed": prompts, "failed": 0, "num_prompts": prompts, **times}
    pathlib.Path(option("--result-dir"), option("--result-filename")).write_text(json.dumps(saved))
"""

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def stand_in(tmp_path: Path) -> dict[str, str]:
    """An environment in which `vllm` is the stand-in, and our plugin is registered with it."""
    site = tmp_path / "site"
    package = site / "vllm" / "entrypoints" / "cli"
    package.mkdir(parents=True)
    for folder in (package, package.parent, package.parent.parent):
        (folder / "__init__.py").touch()
    (package / "main.py").write_text(STAND_IN)
    information = site / "vllm-0.0.1+cpu.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.0.1+cpu\n")
    (information / "entry_points.txt").write_text(
        "[vllm.general_plugins]\nserving_ops = serving_ops.integrations.vllm:register\n"
    )
    checkout = Path(serving_ops.__file__).parents[1]
    ours = {"PYTHONPATH": os.pathsep.join([str(site), str(checkout)])}
    # vLLM sets variables of its own in the process that imports it, which another test may have done.
    return {name: value for name, value in os.environ.items() if not name.startswith(RECORDED)} | ours


@pytest.fixture
def bench(stand_in: dict[str, str], tmp_path: Path) -> Run:
    """`bench(*words, **environment)` runs `python -m serving_ops.bench_e2e` on the stand-in."""

    def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "serving_ops.bench_e2e", *words]
        return subprocess.run(
            command,
            env={**stand_in, **environment},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run


@pytest.fixture
def result() -> Result:
    """Two rounds in which serving_ops takes 0.8 and 0.9 of native's time."""
    return Result(
        name="sample",
        date="2026-11-20T12:00:00+00:00",
        command="python -m serving_ops.bench_e2e --rounds 2",
        serve_command="vllm serve dense",
        engine="vllm",
        model="preset dense",
        device="cpu",
        eager=True,
        load=Load(num_prompts=4, input_len=64, output_len=8, concurrency=1, num_warmups=1),
        versions={"serving_ops": "0.1.0", "vllm": "0.32.0+cpu", "torch": "2.13.0+cpu"},
        hardware=Hardware(cpu="Some CPU", cores=2, memory_gib=23.5, gpu=None),
        rounds={"native": rounds([100.0, 100.0], None), "serving_ops": rounds([80.0, 90.0], "on for 5 of 5")},
    )


def rounds(times_ms: list[float], line: str | None) -> list[Round]:
    return [
        Round(number, 1, 1000 + number, 12.0, line is not None, line, dict.fromkeys(METRICS, time_ms))
        for number, time_ms in enumerate(times_ms, start=1)
    ]
