"""Markdown tables from result files, on standard output or between a README's markers:

    <!-- table:NAME -->
    <!-- /table -->

NAME is the result file's name without `.json`.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from serving_ops.bench_e2e.report import ROWS, load, machine, ratio_text, rounds, spread_text
from serving_ops.bench_e2e.result import BASELINE, OURS, Result, load_result
from serving_ops.bench_e2e.stats import RATIO_METHOD


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m serving_ops.bench_e2e table", description="Render result files as Markdown tables."
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="result JSON")
    parser.add_argument("--readme", type=Path, help="write the tables between this file's markers instead")
    arguments = parser.parse_args(argv)
    return write_all(arguments.files, lambda path: markdown(load_result(path)), arguments.readme)


def write_all(files: Sequence[Path], render: Callable[[Path], str], page: Path | None, ending: str = "") -> int:
    """The tables of result files; `ending` is that of their markers' names. Exit status 1, with a sentence, for a file
    that is no result, and for a page without its marker."""
    try:
        write({f"{path.stem}{ending}": _rendered(render, path) for path in files}, page)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _rendered(render: Callable[[Path], str], path: Path) -> str:
    try:
        return render(path)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        known = isinstance(error, ValueError) and str(path) in str(error)
        raise error if known else ValueError(f"{path} is no result of this bench: {error!r}") from error


def write(tables: dict[str, str], page: Path | None) -> None:
    """Tables by name, to standard output or between a page's markers. Raises ValueError for one that has none."""
    if page is None:
        print("\n\n".join(tables.values()))
    else:
        page.write_text(fill(page.read_text(), tables))


def markdown(result: Result) -> str:
    variants = list(result.rounds)
    ratio_column = [f"{OURS} / {BASELINE}, 95% interval"] if result.compared else []
    header = ["ms", *variants, *ratio_column]
    rows = [_row(result, label, metric) for label, metric in ROWS]
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return f"{_heading(result)}\n\n{table}\n\n{_note(result)}"


def fill(text: str, tables: dict[str, str]) -> str:
    """`text` with each table between its markers. Raises ValueError for a table that has none."""
    for name, table in tables.items():
        marker = f"<!-- table:{name} -->"
        pattern = re.compile(rf"({re.escape(marker)}\n).*?(<!-- /table -->)", re.DOTALL)
        places = pattern.findall(text)
        if len(places) != 1:
            raise ValueError(f"expected {marker} ... <!-- /table --> once, found it {len(places)} times")
        text = pattern.sub(rf"\1{_literal(table)}\n\2", text)
    return text


def _literal(text: str) -> str:
    """For use as a replacement: no group references."""
    return text.replace("\\", r"\\")


def _row(result: Result, label: str, metric: str) -> list[str]:
    cells = [spread_text(result.spread(variant, metric)) for variant in result.rounds]
    return [label, *cells, *([ratio_text(result.ratio(metric))] if result.compared else [])]


def _heading(result: Result) -> str:
    head = f"**{result.model}, {result.mode}**: {result.engine} {result.versions[result.engine]}, torch "
    head += f"{result.versions['torch']}, {machine(result)}, {result.date[:10]}"
    return head if result.active() else f"{head}. **serving_ops was not active: this compares native with itself.**"


def _note(result: Result) -> str:
    return f"{load(result)}; median over {rounds(result)} [lowest-highest]; ratio: {RATIO_METHOD}. `{result.command}`"
