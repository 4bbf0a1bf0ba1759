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

from rich.console import Console

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
    parser.add_argument("--markdown", action="store_true", help="print Markdown")
    chosen = parser.parse_args(argv)
    try:
        a, b = (result_file.read(path) for path in chosen.files)
        block = (_of_ops if "results" in a else _of_variants)(a, b) if a["kind"] == b["kind"] else None
        if block is None or not block.lines:
            raise ValueError(f"results of {a['kind']} and of {b['kind']}: they have no figures in common")
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    if chosen.markdown:
        print(block.markdown())
    else:
        block.print(Console(highlight=False))
    return 0


def _of_variants(a: dict[str, Any], b: dict[str, Any]) -> Block:
    runs = [comparison.of(plain) for plain in (a, b)]
    lines = []
    for figure in (figure for figure in runs[0].figures if figure in runs[1].figures):
        spreads = {variant: [run.spread(variant, figure) for run in runs] for variant in (OURS, BASELINE)}
        changes = [f"{after.median / before.median:.3f}" for before, after in spreads.values()]
        ratios = [str(run.ratio(figure) or "none") for run in runs]
        lines.append([runs[0].figures[figure], *map(str, spreads[OURS]), *changes, *ratios])
    ratios = [f"{OURS} / {BASELINE} {name}" for name in "AB"]
    return Block(["ms", f"{OURS} A", f"{OURS} B", "B / A", f"{BASELINE} B / A", *ratios], lines)


def _of_ops(a: dict[str, Any], b: dict[str, Any]) -> Block:
    times, others = (
        {_case(result): result["times"][OURS]["median_us"] for result in report["results"] if OURS in result["times"]}
        for report in (a, b)
    )
    ratios = {case: others[case] / time for case, time in times.items() if case in others}
    lines = [[case, f"{times[case]:.2f}", f"{others[case]:.2f}", f"{ratio:.3f}"] for case, ratio in ratios.items()]
    if ratios:
        sums = [sum(of[case] for case in ratios) for of in (times, others)]
        mean = f"{statistics.geometric_mean(ratios.values()):.3f}"
        lines.append(["sum; geometric mean of the ratios", *(f"{total:.1f}" for total in sums), mean])
    return Block([f"us of {OURS}", "A", "B", "B / A"], lines)


def _case(result: dict[str, Any]) -> str:
    shown = [value for name in CASE if (value := result.get(name)) not in UNSAID]
    return " ".join(" x ".join(map(str, value)) if isinstance(value, list) else str(value) for value in shown)
