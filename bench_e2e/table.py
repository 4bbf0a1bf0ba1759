"""`python -m serving_ops.bench_e2e table`: Markdown tables from the result files of every bench.

They go to standard output, or between a page's markers, where NAME is the result file's name without `.json`:

    <!-- table:NAME -->
    <!-- /table -->
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType

COMMAND = "python -m serving_ops.bench_e2e table"


def main(argv: Sequence[str]) -> int:
    """Exit status 1, with a sentence, for a file that is no result, and for a page without its marker."""
    parser = argparse.ArgumentParser(prog=COMMAND, description="Render result files as Markdown tables.")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="result JSON of any bench")
    parser.add_argument("--readme", type=Path, help="write the tables between this file's markers instead")
    parser.add_argument("--summary", metavar="NAME", help="of --turns or --ops: one table, for the marker NAME-summary")
    arguments = parser.parse_args(argv)
    try:
        if arguments.summary:
            tables = {f"{arguments.summary}-summary": _summary(arguments.files)}
        else:
            tables = {path.stem: _rendered(path) for path in arguments.files}
        if arguments.readme is None:
            print("\n\n".join(tables.values()))
        else:
            arguments.readme.write_text(fill(arguments.readme.read_text(), tables))
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _rendered(path: Path) -> str:
    try:
        return str(_kind(path).render(path))
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no result of this bench: {error!r}") from error


def _summary(files: Sequence[Path]) -> str:
    kinds = {_kind(path) for path in files}
    if len(kinds) != 1 or not hasattr(kind := kinds.pop(), "summarize"):
        raise ValueError("--summary is for results of --turns, or for results of --ops")
    return str(kind.summarize(files))


def _kind(path: Path) -> ModuleType:
    """The module that renders a file, by what is in it. One that measures ops imports torch."""
    plain = json.loads(path.read_text())
    if plain.get("kind") == "turns":
        from serving_ops.bench_e2e.turns import table as kind
    elif "step_ms" in plain:
        from serving_ops.bench_e2e.training import steps as kind
    elif "results" not in plain:
        from serving_ops.bench_e2e import report as kind
    elif "passes" in plain["results"][0]:
        from serving_ops.bench_e2e.training import table as kind
    else:
        from serving_ops.bench_e2e.ops import table as kind
    return kind


def rows(lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the first line is its header."""
    header, *body = lines
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ("---", *["---:"] * (len(header) - 1)), *body))


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
