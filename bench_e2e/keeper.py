"""Runs a command that never outlives the bench: `python keeper.py BENCH_PID STOP_SECONDS COMMAND...`.

The keeper leads the process group of the command and all its workers. The kernel tells it when the bench dies, even by
SIGKILL, and it stops the group. It imports nothing of ours, so that it starts in a few milliseconds.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time

PR_SET_PDEATHSIG = 1


def main() -> int:
    """The exit status of the command; 128 and the number of the signal that ended it."""
    bench, patience, command = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]
    awaited = {signal.SIGTERM, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_SETMASK, awaited)
    die_with(bench, signal.SIGTERM)
    child = _start(command)
    while True:
        signal.sigwait(awaited)
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended and os.getppid() == bench:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
        if os.getppid() != bench:
            _stop_group(child, patience)


def die_with(parent: int, number: int) -> None:
    """The kernel sends us signal `number` when `parent` ends. Ends at once if it already has."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os._exit(1)


def _start(command: list[str]) -> int:
    keeper = os.getpid()
    child = os.fork()
    if child:
        return child
    try:
        die_with(keeper, signal.SIGKILL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.execvp(command[0], command)
    except OSError as error:
        os.write(2, f"{command[0]}: {error}\n".encode())
    finally:
        os._exit(127)


def _stop_group(child: int, patience: float) -> None:
    """Ends this process too, which is one of the group."""
    os.killpg(0, signal.SIGTERM)  # blocked here
    deadline = time.monotonic() + patience
    with contextlib.suppress(ChildProcessError):
        while time.monotonic() < deadline and not os.waitpid(child, os.WNOHANG)[0]:
            time.sleep(0.05)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
