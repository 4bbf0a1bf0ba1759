from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving_ops.bench_e2e import process
from serving_ops.bench_e2e.comparison import VARIANTS
from serving_ops.bench_e2e.engine_arguments import environment_of
from serving_ops.bench_e2e.process import Child, ChildFailed, Children

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


@contextlib.contextmanager
def child(code: str, folder: Path) -> Iterator[Child]:
    with Children() as children:
        yield start(children, code, folder)


def start(children: Children, code: str, folder: Path, log: str = "server.log") -> Child:
    return children.start([sys.executable, "-c", code], os.environ, folder / log, cwd=folder)


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
        server.wait_until(lambda: False, "the server", 20)
    assert "made of cheese" in str(failure.value)
    assert str(tmp_path / "server.log") in str(failure.value)


def test_a_server_that_never_answers_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(process, "HEARTBEAT_SECONDS", 1.0)
    with (
        child("import time; print('thinking', flush=True); time.sleep(600)", tmp_path) as server,
        pytest.raises(ChildFailed, match="not up after 5 s"),
    ):
        server.wait_until(lambda: False, "the server", 5)
    assert capsys.readouterr().out.endswith(": thinking\n")
    assert server.poll() is not None


def test_workers_that_ignore_the_signal_are_gone_too(tmp_path: Path) -> None:
    with child(STUBBORN, tmp_path) as server:
        wait_for(lambda: len(server.lines()) == 2)
        pids = {name: int(pid) for name, pid in (line.split() for line in server.lines())}
        assert running(pids["worker"])
    wait_for(lambda: not running(pids["worker"]))
    assert not running(pids["worker"])
    assert not running(pids["parent"])


BENCH = """
import os, pathlib, sys
from serving_ops.bench_e2e.process import Children
folder = pathlib.Path(sys.argv[1])
with Children() as children:
    started = children.start([sys.executable, "-c", sys.argv[2]], os.environ, folder / "server.log", cwd=folder)
    while len(started.lines()) < 2:
        pass
    os.kill(os.getpid(), 9)
"""


def test_a_bench_that_is_killed_leaves_no_process(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", BENCH, str(tmp_path), STUBBORN], timeout=60)
    pids = [int(line.split()[1]) for line in (tmp_path / "server.log").read_text().splitlines()]
    assert len(pids) == 2
    wait_for(lambda: not any(map(running, pids)))
    assert not any(map(running, pids))


def test_a_signal_that_comes_while_a_command_starts_finds_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Child] = []
    start_child = Child.__init__

    def interrupted(self: Child, *args: object, **more: object) -> None:
        start_child(self, *args, **more)  # type: ignore[arg-type]
        started.append(self)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Child, "__init__", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), child("import time; time.sleep(600)", tmp_path):
            raise AssertionError("the signal was lost")
    finally:
        signal.signal(signal.SIGINT, before)
    assert started[0].wait(10) < 0


def test_commands_are_stopped_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "STOP_SECONDS", 1.0)
    deaf = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
    )
    with Children() as children:
        logs = [start(children, deaf, tmp_path, f"{number}.log") for number in range(3)]
        wait_for(lambda: all(log.lines() for log in logs))
        left = time.monotonic()
    assert 1.0 <= time.monotonic() - left < 2.5


def test_the_status_of_a_command_is_told(tmp_path: Path) -> None:
    for code, status in (("raise SystemExit(7)", 7), ("import os; os.kill(os.getpid(), 9)", -9)):
        with child(code, tmp_path) as server:
            wait_for(lambda server=server: server.poll() is not None)
        assert server.poll() == status


def test_keys_for_apis_stay_out_of_a_servers_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = ("VLLM_API_KEY", "SGLANG_API_KEY", "OPENAI_API_KEY")
    for name in (*keys, "HF_TOKEN"):
        monkeypatch.setenv(name, "secret")
    found = environment_of("native", "cpu", offline=True)
    assert not set(keys) & set(found)
    assert found["HF_TOKEN"] == "secret"  # hidden models are loaded with it


def test_a_progress_bar_counts_as_lines(tmp_path: Path) -> None:
    with child(r"print('a\rb\n\n', end='')", tmp_path) as bar:
        wait_for(lambda: bar.poll() is not None)
    assert bar.lines() == ["a", "b"]


def test_the_bindings_farewell_does_not_hide_the_error(tmp_path: Path) -> None:
    farewell = "nanobind: leaked 2 functions!\n" + ' - leaked function "x"\n' * 500 + " - ... skipped remainder"
    with child(f"print('ValueError: cheese'); print({farewell!r})", tmp_path) as server:
        wait_for(lambda: server.poll() is not None)
    assert server.lines() == ["ValueError: cheese"]


def test_variants_differ_in_serving_ops_alone() -> None:
    native = environment_of("native", "cpu", offline=True)
    ours = environment_of("serving_ops", "cpu", offline=True)
    assert {key: (native[key], ours[key]) for key in native if native[key] != ours[key]} == {
        "SERVING_OPS": ("off", "auto")
    }


def test_what_the_caller_set_for_the_engine_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "3")
    monkeypatch.setenv("SERVING_OPS", "strict")
    found = environment_of("native", "cpu", offline=True)
    assert found["VLLM_CPU_KVCACHE_SPACE"] == "3"
    assert found["SERVING_OPS"] == "off"


@pytest.mark.parametrize("switch", ["rms_norm", "strict,rms_norm"])
def test_what_the_caller_switches_on_is_the_variant_that_is_measured(
    switch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVING_OPS", switch)
    assert [environment_of(variant, "cpu", offline=True)["SERVING_OPS"] for variant in VARIANTS] == ["off", switch]
