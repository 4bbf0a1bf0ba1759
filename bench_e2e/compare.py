"""`python -m serving_ops.bench_e2e compare A.json B.json`: two results of one kind beside each other.

The runs were not measured in turns: what changed on the machine between them is in B / A, which so has no interval.
Each run's own ratio to its baseline has one.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from serving_ops.bench_e2e import comparison, result_file
from serving_ops.bench_e2e.comparison import BASELINE, OURS
from serving_ops.bench_e2e.table import Block

CASE = ("regime", "op", "shape", "dtype", "layout", "form", "threads", "passes")
"""What makes a case of an op, in the order in which it is shown."""
UNSAID = (None, "contiguous", "forward")


def main(argv: Sequence[str]) -> int:
    """Exit status 1, with a sentence, for files that cannot be compared."""
    parser = argparse.ArgumentParser(prog="python -m serving_ops.bench_e2e compare", description=__doc__)
    parser.add_argument("files", nargs=2, type=Path, metavar="FILE", help="results of one kind")
    chosen = parser.parse_args(argv)
    try:
        a, b = (result_file.read(path) for path in chosen.files)
        block = (_of_ops if "results" in a else _of_variants)(a, b) if a["kind"] == b["kind"] else None
        if block is None or not block.lines:
            raise ValueError(f"results of {a['kind']} and of {b['kind']}: they have no figures in common")
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    print(block.markdown())
    return 0


def _of_variants(a: dict[str, Any], b: dict[str, Any]) -> Block:
    first, second = comparison.of(a), comparison.of(b)
    lines = []
    for figure in (figure for figure in first.figures if figure in second.figures):
        spreads = {variant: [run.spread(variant, figure) for run in (first, second)] for variant in (OURS, BASELINE)}
        changes = [f"{after.median / before.median:.3f}" for before, after in spreads.values()]
        ratios = [str(run.ratio(figure) or "none") for run in (first, second)]
        lines.append([first.figures[figure], *map(str, spreads[OURS]), *changes, *ratios])
    ratios = [f"{OURS} / {BASELINE} {name}" for name in "AB"]
    return Block(["ms", f"{OURS} A", f"{OURS} B", "B / A", f"{BASELINE} B / A", *ratios], lines)


def _of_ops(a: dict[str, Any], b: dict[str, Any]) -> Block:
    before, after = (
        {_case(result): result["times"][OURS]["median_us"] for result in report["results"] if OURS in result["times"]}
        for report in (a, b)
    )
    times = {case: (time, after[case]) for case, time in before.items() if case in after}
    lines = [[case, f"{one:.2f}", f"{other:.2f}", f"{other / one:.3f}"] for case, (one, other) in times.items()]
    if times:
        mean = statistics.geometric_mean(other / one for one, other in times.values())
        sums = [f"{sum(column):.1f}" for column in zip(*times.values(), strict=True)]
        lines.append(["sum; geometric mean of the ratios", *sums, f"{mean:.3f}"])
    return Block([f"us of {OURS}", "A", "B", "B / A"], lines)


def _case(result: dict[str, Any]) -> str:
    shown = [value for name in CASE if (value := result.get(name)) not in UNSAID]
    return " ".join(" x ".join(map(str, value)) if isinstance(value, list) else str(value) for value in shown)
