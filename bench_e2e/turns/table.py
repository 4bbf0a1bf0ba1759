"""Markdown tables from result files, on standard output or between a page's markers; see `bench_e2e/table.py`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from serving_ops.bench_e2e.report import ratio_text, spread_text
from serving_ops.bench_e2e.result import BASELINE, OURS
from serving_ops.bench_e2e.table import fill
from serving_ops.bench_e2e.turns.load import labels
from serving_ops.bench_e2e.turns.result import RATIO_METHOD, TurnsResult, load_result

HEADER = ("ms", BASELINE, OURS, f"{OURS} / {BASELINE}, 95% interval")


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m serving_ops.bench_e2e --turns table", description="Render result files as Markdown tables."
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="result JSON")
    parser.add_argument("--readme", type=Path, help="write the tables between this file's markers instead")
    arguments = parser.parse_args(argv)
    try:
        tables = {path.stem: markdown(load_result(path)) for path in arguments.files}
        if arguments.readme is None:
            print("\n\n".join(tables.values()))
        else:
            arguments.readme.write_text(fill(arguments.readme.read_text(), tables))
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def lines(result: TurnsResult) -> list[tuple[str, str, str, str]]:
    """One for each figure that was measured."""
    found = set(result.figures())
    return [
        (
            label,
            *(spread_text(result.spread(variant, figure)) for variant in (BASELINE, OURS)),
            ratio_text(result.ratio(figure)),
        )
        for figure, label in labels(result.load).items()
        if figure in found
    ]


def markdown(result: TurnsResult) -> str:
    rows = [HEADER, ("---", *["---:"] * (len(HEADER) - 1)), *lines(result)]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
    return f"{heading(result)}\n\n{table}\n\n{note(result)} `{result.command}`"


def heading(result: TurnsResult) -> str:
    machine = result.hardware.gpu or f"{result.hardware.cpu}, {result.hardware.cores} cores"
    versions = f"{result.engine} {result.versions['vllm']}, torch {result.versions['torch']}"
    return f"**{result.model}, {result.mode}**: {versions}, {machine}, {result.date[:10]}"


def note(result: TurnsResult) -> str:
    runs = result.engines[BASELINE]
    return (
        f"{len(runs)} engines of each variant, alive at once, in turns over {len(runs[0].rounds)} rounds: median over "
        f"engines of their medians over rounds [lowest-highest]. TPOT over {result.load.decode_steps} steps behind a "
        f"prompt of {result.load.decode_prompt_len} tokens. Ratio: {RATIO_METHOD}."
    )
