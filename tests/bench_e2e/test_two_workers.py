"""`step` on engines with two workers each, which are processes; one of them is killed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from serving_ops.bench_e2e import comparison
from serving_ops.bench_e2e.environment import engine_version, plugin_installed

pytestmark = [
    pytest.mark.engine,
    pytest.mark.slow,
    pytest.mark.skipif(engine_version() is None, reason="vLLM is not installed"),
    pytest.mark.skipif(not plugin_installed(), reason="serving-ops is not installed, vLLM would not find the plugin"),
    pytest.mark.skipif(torch.cuda.device_count() == 1, reason="needs two GPUs"),
]

SMALL = ("--preset", "dense", "--engines", "1", "--rounds", "1000", "--prompt-lens", "16", "--decode-steps", "2")


def wait_for(what: Callable[[], Any], bench: subprocess.Popen[str]) -> Any:
    until = time.monotonic() + 240
    while not (found := what()):
        assert bench.poll() is None, bench.communicate()[0]
        assert time.monotonic() < until
        time.sleep(0.2)
    return found


def test_a_killed_worker_ends_the_bench_which_saves_its_rounds_and_leaves_no_process(tmp_path: Path) -> None:
    psutil = pytest.importorskip("psutil")
    command = [sys.executable, "-m", "serving_ops.bench_e2e", "step", *SMALL, "--out", str(tmp_path), "--name", "two"]
    command += ["--engine-args", '{"tensor_parallel_size": 2}']
    environment = {**os.environ, "TMPDIR": str(tmp_path), "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
    merged: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, env=environment, **merged) as bench:
        try:
            folder = wait_for(lambda: list(tmp_path.glob("*/serving_ops-1/answer-1")), bench)[0].parent
            ours = psutil.Process(bench.pid).children(recursive=True)
            workers = [process for process in ours if "Worker_TP" in "".join(process.cmdline())]
            (engine,) = (process for process in ours if str(folder) in process.cmdline())
            next(worker for worker in workers if worker.ppid() == engine.pid).kill()
            output, _ = bench.communicate(timeout=90)
        finally:
            bench.terminate()
    assert len(workers) == 4
    assert bench.returncode == 1, output
    assert "serving_ops 1 ended with status" in output
    assert psutil.wait_procs(ours, timeout=10)[1] == []
    result = comparison.load(tmp_path / "two.json")
    assert result.active
    assert result.run["engine_options"]["tensor_parallel_size"] == 2
