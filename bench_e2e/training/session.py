"""One run: every case in turn, both passes of it, a line as each is done, and the JSON kept up to date beside it."""

from __future__ import annotations

from typing import Any

from serving_ops.bench_e2e.ops import session
from serving_ops.bench_e2e.ops.cases import Case
from serving_ops.bench_e2e.ops.results import CaseResult
from serving_ops.bench_e2e.ops.table import Block
from serving_ops.bench_e2e.training import table
from serving_ops.bench_e2e.training.cases import TrainingCase
from serving_ops.bench_e2e.training.runner import measure


class Session(session.Session):
    """The same for `training.contestants`."""

    table_command = "python -m serving_ops.bench_e2e --training table"

    def measure_case(self, case: Case) -> list[CaseResult]:
        assert isinstance(case, TrainingCase)
        return measure(case, self.contestants, self.device, quick=self.quick)

    def blocks(self, report: dict[str, Any]) -> list[Block]:
        return table.blocks(report)
