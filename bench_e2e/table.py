"""`python -m serving_ops.bench_e2e table` and `compare`: Markdown tables from the result files of every bench.

Tables go to standard output, or between a page's markers, where NAME is the result file's name without `.json`:

    <!-- table:NAME -->
    <!-- /table -->
"""

import argparse
import importlib
import re
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from serving_ops.bench_e2e import result_file
from serving_ops.bench_e2e.environment import COMMAND

RENDERERS = {"ops": "ops.ops_table", "training": "ops.ops_table", "accuracy": "accuracy.accuracy_bench"}


Rows = list[Sequence[str]]  # of a table: its header, and then its lines


def render(rows: Rows) -> str:
    ruled = [rows[0], ("---", *["---:"] * (len(rows[0]) - 1)), *rows[1:]]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in ruled)


def beside(what: str, a: Mapping[str, float], b: Mapping[str, float]) -> Rows:
    """A line for each name that both have. Behind them is the geometric mean of the ratios."""
    both = {name: (one, b[name]) for name, one in a.items() if name in b}
    lines = [[name, f"{one:.4g}", f"{other:.4g}", f"{other / one:.3f}"] for name, (one, other) in both.items()]
    if both:
        mean = statistics.geometric_mean(other / one for one, other in both.values())
        lines.append(["geometric mean", "", "", f"{mean:.3f}"])
    return [[what, "A", "B", "B / A"], *lines]


def main(argv: Sequence[str]) -> int:
    """Exit status 1, with a sentence, for a file that is no result, and for a page without its marker."""
    parser = argparse.ArgumentParser(prog=f"{COMMAND} table", description="Render result files as Markdown tables.")
    add = parser.add_argument
    add("files", nargs="+", type=Path, metavar="FILE", help="result JSON of any bench")
    add("--readme", type=Path, help="write the tables between this file's markers instead")
    add("--summary", metavar="NAME", help="of step or ops: one table, for the marker NAME-summary")
    add("--gains", action="store_true", help="who gains: one table of all results, for the marker gains")
    chosen = parser.parse_args(argv)
    try:
        tables = _tables(chosen, {path: result_file.read(path) for path in chosen.files})
        if chosen.readme is None:
            print("\n\n".join(tables.values()))
        else:
            chosen.readme.write_text(fill(chosen.readme.read_text(), tables))
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def compare(argv: Sequence[str]) -> int:
    description = "Two results of one kind beside each other. They were not measured in turns: B / A has no interval."
    parser = argparse.ArgumentParser(prog=f"{COMMAND} compare", description=description)
    parser.add_argument("files", nargs=2, type=Path, metavar="FILE", help="results of one kind")
    try:
        a, b = (result_file.read(path) for path in parser.parse_args(argv).files)
        rows: Rows = _renderer(a["kind"], "compared")(a, b) if a["kind"] == b["kind"] else []
        if len(rows) < 2:
            raise ValueError(f"results of {a['kind']} and of {b['kind']}: they have no figures in common")
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    print(render(rows))
    return 0


def _tables(chosen: argparse.Namespace, results: dict[Path, dict[str, Any]]) -> dict[str, str]:
    """By the names of their markers."""
    if chosen.gains:
        from serving_ops.bench_e2e import gains

        return {"gains": gains.markdown(results, (chosen.readme or Path("README.md")).parent)}
    if not chosen.summary:
        rendered = {}
        for path, result in results.items():
            try:
                rendered[path.stem] = _renderer(result["kind"], "markdown")(result)
            except (AttributeError, LookupError, TypeError, ValueError) as error:
                raise ValueError(f"{path} is no result of this bench: {error!r}") from error
        return rendered
    kinds = {result["kind"] for result in results.values()}
    if kinds not in ({"step"}, {"ops"}):
        raise ValueError("--summary is for results of step, or for results of ops")
    return {f"{chosen.summary}-summary": _renderer(*kinds, "summary")(list(results.values()))}


def _renderer(kind: str, function: str) -> Callable[..., Any]:
    """The kind's `markdown` of a result, `summary` of several, or `compared` of two."""
    module = importlib.import_module(f"serving_ops.bench_e2e.{RENDERERS.get(kind, 'comparison')}")
    return getattr(module, function)  # type: ignore[no-any-return]


def fill(text: str, tables: dict[str, str]) -> str:
    """`text` with each table between its markers. Raises ValueError for a table that has none."""
    for name, table in tables.items():
        marker = f"<!-- table:{name} -->"
        pattern = re.compile(rf"({re.escape(marker)}\n).*?(<!-- /table -->)", re.DOTALL)
        places = pattern.findall(text)
        if len(places) != 1:
            raise ValueError(f"expected {marker} ... <!-- /table --> once, found it {len(places)} times")
        text = pattern.sub(lambda found, table=table: f"{found[1]}{table}\n{found[2]}", text)  # type: ignore[misc]
    return text
