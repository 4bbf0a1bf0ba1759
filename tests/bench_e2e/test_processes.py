from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from serving_ops.bench_e2e.process import Child, ChildFailed
from serving_ops.bench_e2e.server import VARIANTS, engine_environment, free_port, wait_until_healthy

# Both write to one log, so each line is one write: two prints may mix where Python does not buffer.
STUBBORN = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    os.write(1, b"worker %d\\n" % os.getpid())
    time.sleep(600)
signal.signal(signal.SIGTERM, signal.SIG_DFL)
os.write(1, b"parent %d\\n" % os.getpid())
time.sleep(600)
"""


def child(code: str, folder: Path) -> Child:
    return Child([sys.executable, "-c", code], os.environ, folder / "server.log", cwd=folder)


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition: object, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:  # type: ignore[operator]
        time.sleep(0.02)


def test_a_server_that_dies_is_reported_with_the_end_of_its_log_and_its_path(tmp_path: Path) -> None:
    with (
        child("print('made of cheese'); raise SystemExit(3)", tmp_path) as server,
        pytest.raises(ChildFailed, match="status 3") as failure,
    ):
        wait_until_healthy(server, free_port(), 20, lambda line: None)
    assert "made of cheese" in str(failure.value)
    assert str(tmp_path / "server.log") in str(failure.value)


def test_a_server_that_never_answers_is_given_up(tmp_path: Path) -> None:
    seen: list[str] = []
    with (
        child("import time; print('thinking', flush=True); time.sleep(600)", tmp_path) as server,
        pytest.raises(ChildFailed, match="not up after 5 s"),
    ):
        wait_until_healthy(server, free_port(), 5, seen.append)
    assert seen[-1] == "thinking"
    assert server.ended() is not None


def test_workers_that_ignore_the_signal_are_gone_too(tmp_path: Path) -> None:
    with child(STUBBORN, tmp_path) as server:
        wait_for(lambda: len(server.lines()) == 2)
        pids = {name: int(pid) for name, pid in (line.split() for line in server.lines())}
        assert running(pids["worker"])
    wait_for(lambda: not running(pids["worker"]))
    assert not running(pids["worker"])
    assert not running(pids["parent"])


def test_a_progress_bar_counts_as_lines(tmp_path: Path) -> None:
    with child(r"print('a\rb\n\n', end='')", tmp_path) as bar:
        wait_for(lambda: bar.ended() is not None)
    assert bar.lines() == ["a", "b"]
    assert bar.last_line() == "b"


def test_the_bindings_farewell_does_not_hide_the_error(tmp_path: Path) -> None:
    farewell = "nanobind: leaked 2 functions!\n" + ' - leaked function "x"\n' * 500 + " - ... skipped remainder"
    with child(f"print('ValueError: cheese'); print({farewell!r})", tmp_path) as server:
        wait_for(lambda: server.ended() is not None)
    assert server.tail(25) == "ValueError: cheese"


def test_variants_differ_in_serving_ops_alone(tmp_path: Path) -> None:
    native = engine_environment("native", "cpu", tmp_path, offline=True)
    ours = engine_environment("serving_ops", "cpu", tmp_path, offline=True)
    assert {key: (native[key], ours[key]) for key in native if native[key] != ours[key]} == {
        "SERVING_OPS": ("off", "auto")
    }


def test_what_the_caller_set_for_the_engine_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "3")
    monkeypatch.setenv("SERVING_OPS", "strict")
    found = engine_environment("native", "cpu", tmp_path, offline=True)
    assert found["VLLM_CPU_KVCACHE_SPACE"] == "3"
    assert found["SERVING_OPS"] == "off"


@pytest.mark.parametrize(
    ("switch", "ours"),
    [("rms_norm", "rms_norm"), ("strict,rms_norm", "strict,rms_norm"), ("OFF, rms_norm,rms_norm_gated", None)],
)
def test_ops_that_the_caller_names_are_ours_even_beside_off(
    switch: str, ours: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVING_OPS", switch)
    found = [engine_environment(variant, "cpu", tmp_path, offline=True)["SERVING_OPS"] for variant in VARIANTS]
    assert found == ["off", ours or " rms_norm,rms_norm_gated"]
