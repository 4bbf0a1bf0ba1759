"""A command in a process group of its own, its output in a file, gone for certain when we leave."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

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


class Child:
    """Starts on entry; on exit the whole process group is stopped, workers included, whatever happened."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path, cwd: Path) -> None:
        self.command, self.environment, self.log, self.cwd = list(command), dict(environment), log, cwd

    def __enter__(self) -> Child:
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                self.command,
                env=self.environment,
                cwd=self.cwd,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # its process group is its pid
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_SECONDS)
        finally:
            self._signal(signal.SIGKILL)  # also workers that outlived their parent
            self.process.wait()

    def _signal(self, number: int) -> None:
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
