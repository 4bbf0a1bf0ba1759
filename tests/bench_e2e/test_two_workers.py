"""A worker is killed of an engine that has two, which are processes, while the bench asks the engine."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from serving_ops.bench_e2e.environment import engine_version, plugin_installed

pytestmark = [
    pytest.mark.engine,
    pytest.mark.slow,
    pytest.mark.skipif(engine_version() is None, reason="vLLM is not installed"),
    pytest.mark.skipif(not plugin_installed(), reason="serving-ops is not installed, vLLM would not find the plugin"),
    pytest.mark.skipif(torch.cuda.device_count() == 1, reason="needs two GPUs"),
]

UP = "init engine"
"""vLLM's words once an engine is up. The bench then warms it up with requests."""


def wait_for(what: Callable[[], Any], bench: subprocess.Popen[str]) -> Any:
    until = time.monotonic() + 400
    while not (found := what()):
        assert bench.poll() is None, bench.communicate()[0]
        assert time.monotonic() < until
        time.sleep(0.2)
    return found


def test_a_killed_worker_ends_the_bench_which_leaves_no_process(tmp_path: Path) -> None:
    psutil = pytest.importorskip("psutil")
    command = [sys.executable, "-m", "serving_ops.bench_e2e", "step", "--preset", "dense"]
    command += ["--engines", "1", "--engine-args", '{"tensor_parallel_size": 2}', "--out", str(tmp_path / "x.json")]
    environment = {**os.environ, "TMPDIR": str(tmp_path), "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
    environment["VLLM_RPC_BASE_PATH"] = tempfile.gettempdir()  # a socket's path has at most 107 characters
    merged: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, env=environment, **merged) as bench:
        try:
            logs = tmp_path.glob
            (log,) = wait_for(lambda: [log for log in logs("*/native-1/log") if UP in log.read_text()], bench)
            ours = psutil.Process(bench.pid).children(recursive=True)
            (engine,) = (process for process in ours if str(log.parent) in process.cmdline())
            workers = [process for process in engine.children() if "Worker_TP" in "".join(process.cmdline())]
            workers[-1].kill()
            output, _ = bench.communicate(timeout=120)
        finally:
            bench.terminate()
    assert len(workers) == 2
    assert bench.returncode == 1, output
    assert "native-1 ended with status" in output
    assert psutil.wait_procs(ours, timeout=10)[1] == []
