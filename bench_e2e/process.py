"""Commands in a process group, their output in files, gone for certain when we leave; some are asked."""

import contextlib
import math
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import Pipe
from pathlib import Path
from typing import Any, Self

STOP_SECONDS = 15.0  # vLLM needs 2 to 4 s to shut its engine core down; after this it is killed
POLL_SECONDS = 0.25  # seldom, since we share the cores with what is measured
HEARTBEAT_SECONDS = 15.0  # between lines while one waits
# What Triton's bindings print as every vLLM process ends: hundreds of lines after the one that matters.
NOISE = ("nanobind: ", " - leaked ", " - ... skipped", "See https://nanobind")
# Leads the group until the bench ends, even by SIGKILL, and then ends the others and itself.
LEADER = "trap '' TERM; cat; kill -TERM 0; sleep 5; kill -KILL 0"


class ChildFailed(RuntimeError):
    """A command ended, or was late. The message carries the end of its log and the log's path."""

    def __init__(self, what: str, child: "Child") -> None:
        end = "\n".join(child.lines()[-25:])
        super().__init__(f"{what}\n\nlast lines of {child.log}:\n{end}")


class Child(subprocess.Popen[bytes]):
    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path, **more: Any) -> None:
        self.log = log
        with log.open("wb") as out:
            streams = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": subprocess.STDOUT}
            super().__init__(command, env=environment, **streams, **more)

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
    """A process group. On exit every command that was started in it is stopped, workers included, whatever happened.

    The group is there before its first command: one that an interrupt meets while it starts is stopped too.
    """

    def __enter__(self) -> Self:
        streams = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.leader = subprocess.Popen(["sh", "-c", LEADER], process_group=0, **streams)
        self.started: list[Child] = []
        return self

    def __exit__(self, *_: object) -> None:
        """Together: none waits for another's end."""
        try:
            os.killpg(self.leader.pid, signal.SIGTERM)
            deadline = time.monotonic() + STOP_SECONDS
            for child in self.started:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(max(0.0, deadline - time.monotonic()))
        finally:
            os.killpg(self.leader.pid, signal.SIGKILL)  # also workers that outlived their parent
            for child in self.started:
                child.wait()
            self.leader.communicate()

    def start(self, command: Sequence[str], environment: Mapping[str, str], log: Path, **more: Any) -> Child:
        """more: what else Popen is to know."""
        self.started.append(Child(command, environment, log, process_group=self.leader.pid, **more))
        return self.started[-1]


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
