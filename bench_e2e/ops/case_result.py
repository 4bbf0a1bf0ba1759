"""What a case came to, and its JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from serving_ops.bench_e2e.comparison import OURS
from serving_ops.bench_e2e.ops.cases import Case
from serving_ops.bench_e2e.ops.machine_load import DISTURBING
from serving_ops.bench_e2e.ops.round_robin import Samples
from serving_ops.bench_e2e.stats import Summary, ratio_to, summarize

REASON_CHARACTERS = 160  # of an error's first line


@dataclass(frozen=True)
class CaseResult:
    """Times are microseconds a call: of the host in "host", added in "gemm", of the device elsewhere."""

    case: Case
    path: str | None  # how ours ran it: "cpu", "triton.row", "reference", ...
    samples: Samples
    problems: Mapping[str, str]  # why a contestant has no time
    contestants: tuple[str, ...]  # in the order in which the tables show them
    other_cores: float | None  # that other programs used meanwhile

    @property
    def times(self) -> dict[str, Summary]:
        return {name: summarize(values) for name, values in self.samples.items()}

    @property
    def ratios(self) -> dict[str, Summary]:
        """A contestant's time over ours, round by round: above 1 ours is faster."""
        others = {name: values for name, values in self.samples.items() if name != OURS and OURS in self.samples}
        found = {name: ratio_to(self.samples[OURS], values) for name, values in others.items()}
        return {name: ratio for name, ratio in found.items() if ratio is not None}

    @property
    def disturbed(self) -> bool:
        return self.other_cores is not None and self.other_cores > DISTURBING

    def to_json(self) -> dict[str, Any]:
        return {
            **asdict(self.case),
            "bytes_moved": self.case.bytes_moved,
            "path": self.path,
            "contestants": list(self.contestants),
            "times": {name: _rounded(summary, "_us") for name, summary in self.times.items()},
            "ratios": {name: _rounded(summary) for name, summary in self.ratios.items()},
            "problems": dict(self.problems),
            "other_cores": None if self.other_cores is None else round(self.other_cores, 2),
        }


def first_line(error: BaseException) -> str:
    """An error as a cell of a table takes it."""
    text = str(error).strip().split("\n")[0] or "no message"
    return f"{type(error).__name__}: {text}"[:REASON_CHARACTERS]


def _rounded(summary: Summary, unit: str = "") -> dict[str, float]:
    values = {key: round(value, 4) for key, value in asdict(summary).items()}
    return {key if key == "rounds" else f"{key}{unit}": value for key, value in values.items()}
