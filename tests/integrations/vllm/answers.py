"""What a run of serve_tokens.py gave, and how near two are: tokens up to near ties, and logprobs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

NEAR_TIE = 0.1
"""Nats. Logits near 8 in bf16 are 0.03 to 0.06 apart, so two candidates this close may change places."""

LOGPROB_TOLERANCE = 0.2
"""Nats, while both runs have the same tokens before them. Measured: 0.06 to 0.08, and 0.11 for the hybrid compiled,
where Inductor's native norms round elsewhere than ours."""


@dataclass(frozen=True)
class Served:
    """What serve_tokens.py wrote, and the engine's output."""

    result: dict[str, Any]
    output: str

    def start_up_lines(self) -> list[str]:
        return re.findall(r"serving_ops \d\S* \(.*", self.output)


def _steps(
    native: dict[str, Any], ours: dict[str, Any]
) -> Iterator[tuple[int, int, dict[str, float], dict[str, float]]]:
    """Token and logprobs of both runs, for each prompt up to and including the first difference."""
    for prompt in range(len(native["tokens"])):
        both = (native["tokens"][prompt], ours["tokens"][prompt])
        for step, (theirs, mine) in enumerate(zip(*both, strict=True)):
            yield theirs, mine, native["logprobs"][prompt][step], ours["logprobs"][prompt][step]
            if theirs != mine:
                break


def assert_tokens(native: dict[str, Any], ours: dict[str, Any]) -> None:
    for theirs, mine, native_logprobs, our_logprobs in _steps(native, ours):
        if theirs != mine:
            gap = native_logprobs[str(theirs)] - native_logprobs.get(str(mine), float("-inf"))
            assert gap <= NEAR_TIE
            gap = our_logprobs[str(mine)] - our_logprobs.get(str(theirs), float("-inf"))
            assert gap <= NEAR_TIE


def logprobs_apart(native: dict[str, Any], ours: dict[str, Any]) -> list[float]:
    return [
        abs(native_logprobs[token] - our_logprobs[token])
        for _, _, native_logprobs, our_logprobs in _steps(native, ours)
        for token in native_logprobs.keys() & our_logprobs.keys()
    ]
