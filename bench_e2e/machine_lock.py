"""Several runs on one machine: their engines start together, and one run at a time measures."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def starting(path: Path | None) -> Iterator[Callable[[], None]]:
    """Within, the runs that named `path` start. What it yields waits until none of them starts or measures.

    A run holds the file's lock shared while its engines start, and alone from then on. Without a path nothing waits.
    """
    if path is None:
        yield lambda: None
        return
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        yield lambda: fcntl.flock(file, fcntl.LOCK_EX)
