"""`qk_norm_rope` by plans beside the one that it chooses: what the figures in `serving_ops/plan_rope.py` come from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import serving_ops
from serving_ops import cuda_rope
from serving_ops.bench_e2e.ops.cases import Case
from serving_ops.bench_e2e.ops.contestants import Call, Contestant, Unsupported, ours
from serving_ops.bench_e2e.ops.inputs import Inputs
from serving_ops.ops import registry
from serving_ops.plan import Plan

CHANGES: dict[str, Callable[[Plan], Plan]] = {
    "half the elements": lambda plan: replace(plan, rows_per_program=max(1, plan.rows_per_program // 2)),
    "twice the elements": lambda plan: replace(plan, rows_per_program=2 * plan.rows_per_program),
    "1 warp": lambda plan: replace(plan, num_warps=1),
    "2 warps": lambda plan: replace(plan, num_warps=2),
    "4 warps": lambda plan: replace(plan, num_warps=4),
    "early start": lambda plan: replace(plan, overlap=True),
    "no early start": lambda plan: replace(plan, overlap=False),
}
"""What a contestant does otherwise than the plan."""

NO_ROWS = {"min_rows": 0, "max_rows": 0}
"""Of a changed plan, so that C++ launches it for no call: ours go on with the plan."""


def plans() -> list[Contestant]:
    """Ours, and our kernel by each change of its plan. A change that changes nothing is left out."""
    return [ours(), *(Contestant(name, serving_ops.__version__, _bind(change)) for name, change in CHANGES.items())]


def _bind(change: Callable[[Plan], Plan]) -> Callable[[Case, Inputs], Call]:
    def bind(case: Case, inputs: Inputs) -> Call:
        call = registry.find(case.op).bind((), inputs.call)
        route = cuda_rope.rope_route(**call)
        if isinstance(route, str):
            raise Unsupported(route)
        heads, plan = route
        if change(plan) == plan:
            raise Unsupported("this is the plan")

        changed = replace(change(plan), **NO_ROWS)

        def run() -> None:
            cuda_rope.launch_rope((heads, changed), **call)

        return run

    return bind
