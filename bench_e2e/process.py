"""Commands in process groups of their own, their output in files, gone for certain when we leave."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType

KEEPER = [sys.executable, "-IS", str(Path(__file__).with_name("keeper.py"))]
STOP_SECONDS = 15.0  # vLLM needs 2 to 4 s to shut its engine core down; after this it is killed
POLL_SECONDS = 0.25  # seldom, since we share the cores with what is measured
TAIL_BYTES = 64 * 1024  # how far back a tail looks
LINE_BYTES = 4 * 1024  # the same for the last line alone
# What Triton's bindings print as every vLLM process ends: hundreds of lines after the one that matters.
NOISE = ("nanobind: ", " - leaked ", " - ... skipped", "See https://nanobind")


class ChildFailed(RuntimeError):
    """A command ended, or was late. The message carries the end of its log and the log's path."""

    def __init__(self, what: str, child: Child) -> None:
        super().__init__(f"{what}\n\nlast lines of {child.log}:\n{child.tail(25)}")


class Children:
    """On exit every command that was started here is stopped, workers included, whatever happened.

    A bench that is killed leaves none either: see `keeper`.
    """

    def __init__(self) -> None:
        self.started: list[Child] = []

    def __enter__(self) -> Children:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop(*self.started)

    def stop(self, *stopped: Child) -> None:
        """Together: none waits for another's end."""
        try:
            for child in stopped:
                child.send(signal.SIGTERM)
            deadline = time.monotonic() + STOP_SECONDS
            for child in stopped:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.process.wait(max(0.0, deadline - time.monotonic()))
        finally:
            for child in stopped:
                child.send(signal.SIGKILL)  # also workers that outlived their parent
            for child in stopped:
                child.process.wait()

    def start(self, command: Sequence[str], environment: Mapping[str, str], log: Path, cwd: Path) -> Child:
        keeper = [*KEEPER, str(os.getpid()), str(STOP_SECONDS)]
        with log.open("wb") as output, _signals_held():  # one that came now would leave a process unknown to us
            process = subprocess.Popen(
                [*keeper, *command],
                env=dict(environment),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # its process group is its pid
            )
            self.started.append(Child(process, log))
        return self.started[-1]


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Signals that would interrupt us come when the block is over."""
    arrived: list[int] = []

    def hold(number: int, frame: FrameType | None) -> None:
        arrived.append(number)

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    held = {number: handler for number, handler in handlers.items() if handler not in (signal.SIG_IGN, None)}
    try:
        for number in held:
            signal.signal(number, hold)
        yield
    finally:
        for number, handler in held.items():
            signal.signal(number, handler)
    for number in arrived:
        signal.raise_signal(number)


class Child:
    """A command that runs or ran."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process, self.log = process, log

    def send(self, number: int) -> None:
        """Sends it to the whole process group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def ended(self) -> int | None:
        """The exit status, or None while it runs."""
        return self.process.poll()

    def lines(self) -> list[str]:
        """The whole log; a progress bar's carriage returns count as line ends."""
        return _lines(self.log.read_bytes())

    def tail(self, count: int) -> str:
        return "\n".join(self._end(TAIL_BYTES)[-count:])

    def last_line(self) -> str:
        return "".join(self._end(LINE_BYTES)[-1:])

    def _end(self, size: int) -> list[str]:
        with self.log.open("rb") as log:
            log.seek(max(0, self.log.stat().st_size - size))
            return _lines(log.read())


def _lines(raw: bytes) -> list[str]:
    lines = raw.decode(errors="replace").splitlines()
    return [line for line in lines if line.strip() and not line.startswith(NOISE)]


def wait_a_little() -> None:
    time.sleep(POLL_SECONDS)
