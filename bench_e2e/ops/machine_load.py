"""How much of the machine other programs used while something was timed, from Linux's own accounts."""

from __future__ import annotations

import os
import time
from pathlib import Path

# Cores. On two cores with one of them taken, two threads that wait for each other at every call
# were seen to take 8 ms (a time slice of the scheduler) for what takes 20 us alone.
DISTURBING = 0.25

_STAT = Path("/proc/stat")
_IDLE_FIELDS = (3, 4)  # idle and iowait, of "cpu user nice system idle iowait irq softirq steal ..."
_STEAL_FIELD = 7  # the last that is not counted in another one as well


class OtherLoad:
    """Between construction and `cores()`; None where the system does not tell."""

    def __init__(self) -> None:
        self._start = _now()

    def cores(self) -> float | None:
        """Cores that other programs used on average, the hypervisor's other guests included."""
        end = _now()
        if self._start is None or end is None:
            return None
        wall, busy, own = (after - before for before, after in zip(self._start, end, strict=True))
        return max(0.0, busy - own) / wall if wall > 0 else None


def busy_ticks(stat: str) -> int:
    """Of all cores together, from the text of /proc/stat."""
    fields = [int(field) for field in stat.split("\n", 1)[0].split()[1:]]
    return sum(ticks for place, ticks in enumerate(fields[: _STEAL_FIELD + 1]) if place not in _IDLE_FIELDS)


def _now() -> tuple[float, float, float] | None:
    """Seconds: of the clock, of all cores at work, of this process at work."""
    try:
        busy = busy_ticks(_STAT.read_text()) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError):
        return None
    return time.monotonic(), busy, time.process_time()
