"""What a case came to, and its JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from serving_ops.bench_e2e.ops.cases import Case
from serving_ops.bench_e2e.ops.contestants import OURS
from serving_ops.bench_e2e.ops.load import DISTURBING
from serving_ops.bench_e2e.ops.rounds import Samples
from serving_ops.bench_e2e.stats import Summary, ratio_to, summarize

REASON_CHARACTERS = 160  # of an error's first line


@dataclass(frozen=True)
class CaseResult:
    """Times are microseconds a call: of the host in "host", added in "gemm", of the device elsewhere."""

    case: Case
    path: str | None  # how ours ran it: "cpu", "triton.row", "reference", ...
    times: Mapping[str, Summary]
    ratios: Mapping[str, Summary]  # a contestant's time over ours, round by round: above 1 ours is faster
    problems: Mapping[str, str]  # why a contestant has no time
    contestants: tuple[str, ...]  # in the order in which the tables show them
    other_cores: float | None  # that other programs used meanwhile

    @property
    def disturbed(self) -> bool:
        return self.other_cores is not None and self.other_cores > DISTURBING

    def to_json(self) -> dict[str, Any]:
        return {
            **asdict(self.case),
            "bytes_moved": self.case.bytes_moved,
            "path": self.path,
            "contestants": list(self.contestants),
            "times": {name: _in_us(summary) for name, summary in self.times.items()},
            "ratios": {name: _rounded(asdict(summary)) for name, summary in self.ratios.items()},
            "problems": dict(self.problems),
            "other_cores": None if self.other_cores is None else round(self.other_cores, 2),
        }


def case_result(
    case: Case,
    path: str | None,
    samples: Samples,
    problems: Mapping[str, str],
    contestants: tuple[str, ...],
    other_cores: float | None,
) -> CaseResult:
    times = {name: summarize(values) for name, values in samples.items()}
    against_ours = {name: ratio_to(samples[OURS], values) for name, values in samples.items() if OURS in samples}
    ratios = {name: ratio for name, ratio in against_ours.items() if ratio is not None and name != OURS}
    return CaseResult(case, path, times, ratios, problems, contestants, other_cores)


def first_line(error: BaseException) -> str:
    """An error as a cell of a table takes it."""
    text = str(error).strip().split("\n")[0] or "no message"
    return f"{type(error).__name__}: {text}"[:REASON_CHARACTERS]


def _in_us(summary: Summary) -> dict[str, float]:
    values = _rounded(asdict(summary))
    return {f"{key}_us": value for key, value in values.items() if key != "rounds"} | {"rounds": values["rounds"]}


def _rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {key: round(value, 4) for key, value in values.items()}
