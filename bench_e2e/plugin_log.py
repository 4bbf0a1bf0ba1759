"""Whether the plugin was really on, by the line it writes into the server's log once the model is loaded."""

from __future__ import annotations

import re
from collections.abc import Iterable

# "serving_ops 0.1.0 (auto, cpu): on for 13 of 13 RMSNorm; ...", behind the prefix of the engine's logger. Where
# SERVING_OPS names ops, "auto for rms_norm, rms_norm_gated alone" stands in the place of "auto".
STARTUP = re.compile(r"\bserving_ops \S+ \([^)]+\): on for .*")
NOTHING_ON = ": on for no layer"
OFF = "serving_ops is off: "
IN_VLLMS_PASS = "our kernels run"
"""Said where no layer is ours, and vLLM's fusion pass calls our kernels all the same."""


def startup_line(log: Iterable[str]) -> str | None:
    """The plugin's own words at start-up. None if it said nothing, or if a worker said that it is off.

    Of several workers, one on which nothing is on speaks for all.
    """
    lines = list(log)
    found = [match.group(0) for line in lines if (match := STARTUP.search(line))]
    if not found or any(OFF in line for line in lines):
        return None
    return next((line for line in found if not is_active(line)), found[-1])


def is_active(line: str | None) -> bool:
    return line is not None and (NOTHING_ON not in line or IN_VLLMS_PASS in line)
