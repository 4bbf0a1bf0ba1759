"""How often each op ran on a kernel, and on the reference for which reason, in this process.

A call captured in a CUDA graph counts once, at capture: replays do not pass through Python or C++.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from serving_ops import extension

_launched_from_python: dict[str, int] = {}
_reference_calls: Counter[tuple[str, str]] = Counter()


def add_op(op: str) -> None:
    """From now on `snapshot` has this op."""
    _launched_from_python.setdefault(op, 0)


def count_kernel(op: str) -> None:
    """Count a launch from Python; the C++ library counts what it runs."""
    _launched_from_python[op] += 1


def count_reference(op: str, reason: str) -> None:
    _reference_calls[op, reason] += 1


def snapshot() -> dict[str, dict[str, Any]]:
    """`{op: {"kernel": calls, "from_python": calls, "reference": {reason: calls}}}` since the process started.

    "from_python" is how many of the "kernel" calls Python launched, at several times the host time of C++: with the
    C++ library, the first call of each compiled variant.
    """
    return {
        op: {
            "kernel": calls + extension.kernel_calls(op),
            "from_python": calls,
            "reference": {reason: n for (name, reason), n in _reference_calls.items() if name == op},
        }
        for op, calls in _launched_from_python.items()
    }
