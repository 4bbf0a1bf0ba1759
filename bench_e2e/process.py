"""Commands in process groups of their own, their output in files, gone for certain when we leave; some are asked."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

STOP_SECONDS = 15.0  # vLLM needs 2 to 4 s to shut its engine core down; after this it is killed
POLL_SECONDS = 0.25  # seldom, since we share the cores with what is measured
HEARTBEAT_SECONDS = 15.0  # between lines while one waits
# What Triton's bindings print as every vLLM process ends: hundreds of lines after the one that matters.
NOISE = ("nanobind: ", " - leaked ", " - ... skipped", "See https://nanobind")
INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Reads process groups until the bench ends, even by SIGKILL, and ends those that are left.
WATCH = "groups=$(cat); kill -TERM $groups; sleep 5; kill -KILL $groups"


class ChildFailed(RuntimeError):
    """A command ended, or was late. The message carries the end of its log and the log's path."""

    def __init__(self, what: str, child: Child) -> None:
        end = "\n".join(child.lines()[-25:])
        super().__init__(f"{what}\n\nlast lines of {child.log}:\n{end}")


class Child(subprocess.Popen[bytes]):
    """A command that runs or ran."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path, **more: Any) -> None:
        self.log = log
        with log.open("wb") as out:  # its process group is its pid
            streams = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": subprocess.STDOUT}
            super().__init__(command, env=environment, start_new_session=True, **streams, **more)

    def send(self, number: int) -> None:
        """Sends it to the whole process group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def lines(self) -> list[str]:
        """The log; a progress bar's carriage returns count as line ends."""
        lines = self.log.read_text(errors="replace").splitlines()
        return [line for line in lines if line.strip() and not line.startswith(NOISE)]

    def wait_until(self, ready: Callable[[], bool], name: str, timeout: float) -> None:
        """Says the last line of the log now and then. Raises ChildFailed: it ended, or was late."""
        started = said = time.monotonic()
        while not ready():
            if self.poll() is not None:
                raise ChildFailed(f"{name} ended with status {self.poll()}", self)
            if time.monotonic() - started > timeout:
                raise ChildFailed(f"{name} was not up after {timeout:.0f} s", self)
            if time.monotonic() - said > HEARTBEAT_SECONDS:
                print(f"waiting for {name}: {''.join(self.lines()[-1:])}", flush=True)
                said = time.monotonic()
            time.sleep(POLL_SECONDS)


class Children:
    """On exit every command that was started here is stopped, workers included, whatever happened."""

    def __init__(self) -> None:
        self.started: list[Child] = []

    def __enter__(self) -> Children:
        streams = {"stdin": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self.watch = subprocess.Popen(["sh", "-c", WATCH], start_new_session=True, bufsize=0, **streams)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop(*self.started)
        self.watch.kill()  # not the end of its input: a group that is gone may have its number given to another
        self.watch.communicate()

    def start(self, command: Sequence[str], environment: Mapping[str, str], log: Path, **more: Any) -> Child:
        """more: what else Popen is to know."""
        assert self.watch.stdin
        with _interrupts_held():  # one that came now would leave a process unknown to us
            self.started.append(Child(command, environment, log, **more))
            self.watch.stdin.write(b"-%d\n" % self.started[-1].pid)
        return self.started[-1]

    def stop(self, *stopped: Child) -> None:
        """Together: none waits for another's end."""
        try:
            for child in stopped:
                child.send(signal.SIGTERM)
            deadline = time.monotonic() + STOP_SECONDS
            for child in stopped:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(max(0.0, deadline - time.monotonic()))
        finally:
            for child in stopped:
                child.send(signal.SIGKILL)  # also workers that outlived their parent
            for child in stopped:
                child.wait()


class Asked:
    """A command that is asked over a pipe. Its last two arguments are the folder of its log and the pipe's descriptor.

    It finds what it is told in the pipe, sends a message when it is up, and then an answer to each question.
    """

    def __init__(
        self, children: Children, command: Sequence[str], variables: Mapping[str, str], folder: Path, told: Any
    ) -> None:
        self.name = folder.name
        self.pipe, self.its_end = Pipe()  # open here too, its end does not close when it dies: wait_until says so
        self.pipe.send(told)
        end, log = self.its_end.fileno(), folder / "log"
        words = [*command, str(folder), str(end)]
        self.child = children.start(words, variables, log, cwd=folder.parent, pass_fds=(end,))

    def wait(self, timeout: float) -> None:
        """Until it is up, for so many seconds. Raises ChildFailed where it ended, or is late."""
        self._answer(timeout)
        print(f"{self.name} is up", flush=True)

    def ask(self, what: Any) -> Any:
        """Its answer. Raises ChildFailed where it ended."""
        self.pipe.send(what)
        return self._answer(math.inf)

    def _answer(self, timeout: float) -> Any:
        self.child.wait_until(self.pipe.poll, self.name, timeout)
        return self.pipe.recv()


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """They come when the block is over."""
    arrived: list[int] = []
    before = {number: signal.signal(number, lambda number, _: arrived.append(number)) for number in INTERRUPTS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for number in arrived:
        signal.raise_signal(number)
