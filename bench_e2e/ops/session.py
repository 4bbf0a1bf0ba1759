"""One run: every case in turn, a line as each is done, and the JSON kept up to date beside it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console

from serving_ops.bench_e2e.ops import report, table, timing_cuda
from serving_ops.bench_e2e.ops.cases import Case
from serving_ops.bench_e2e.ops.results import CaseResult
from serving_ops.bench_e2e.table import COMMAND

SAVE_EVERY = 10  # cases: a run that is killed leaves what it had


class Measure(Protocol):
    """Measures contestants at a case, for one result or several."""

    def __call__(
        self, case: Any, contestants: Sequence[Any], device: str, *, quick: bool = False
    ) -> list[CaseResult]: ...


@dataclass
class Session:
    console: Console
    device: str
    command: str
    contestants: Sequence[Any]
    absent: dict[str, str]  # adapter -> why it could not be loaded
    path: Path
    measure: Measure
    blocks: Callable[[dict[str, Any]], list[table.Block]]
    quick: bool = False
    copy_tb_s: float | None = None
    results: list[CaseResult] = field(default_factory=list)

    def run(self, planned: Sequence[Case]) -> dict[str, Any]:
        """Measures, reports and writes; the report."""
        if self.device == "cuda":
            self.copy_tb_s = timing_cuda.copy_tb_s()
        try:
            self._measure_all(planned)
        finally:  # a device that fails half way takes the rest with it, not what was measured
            written = self.save()
        table.print_tables(self.blocks(written), self.console)
        disturbed = sum(result.disturbed for result in self.results)
        if disturbed:
            self.say(f"{disturbed} of {len(self.results)} were timed while other programs used the machine: run again")
        self.say(f"written to {self.path}; as Markdown: {COMMAND} {self.path}")
        return written

    def save(self) -> dict[str, Any]:
        """The report; `path` is where it lies from now on."""
        made = report.make_report(
            self.device, self.command, self.contestants, self.absent, self.results, self.copy_tb_s
        )
        self.path = report.write(made, self.path)
        return made

    def say(self, line: str) -> None:
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _measure_all(self, planned: Sequence[Case]) -> None:
        start = time.monotonic()
        for number, case in enumerate(planned, start=1):
            measured = self.measure(case, self.contestants, self.device, quick=self.quick)
            self.results += measured
            timing_cuda.release_memory()
            passed = time.monotonic() - start
            for result in measured:
                self.say(f"[{number}/{len(planned)}, {passed:.0f} s] {_progress(result.case, result)}")
            if number % SAVE_EVERY == 0:
                self.save()


def _progress(case: Case, result: CaseResult) -> str:
    threads = f", threads {case.threads}" if case.threads else ""
    times = ", ".join(f"{name} {table.format_us(summary.median)}" for name, summary in result.times.items())
    disturbed = f" (others used {result.other_cores:.1f} cores)" if result.disturbed else ""
    problems = "".join(
        f"\n    {name}: {reason}" for name, reason in result.problems.items() if not reason.startswith("unsupported")
    )
    return f"{case.regime} {case.op} {case.label}{threads}: {times}{disturbed}{problems}"
