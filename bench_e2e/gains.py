"""Who gains: a line an engine and model, with the ratios whose interval excludes 1, and a list of who gains nothing.

Each engine, machine, model and mode counts once, by its newest result. Results whose pairs are too few for an interval,
and those of a plugin that was not on, say nothing here.
"""

import os
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving_ops.bench_e2e import comparison, engine_arguments, presets
from serving_ops.bench_e2e.comparison import Comparison
from serving_ops.bench_e2e.environment import TITLES
from serving_ops.bench_e2e.step_engine import HOST
from serving_ops.bench_e2e.table import Rows, render

MOST_LINES = 8
KINDS = ("serve", "step")
COLUMNS = {
    "GPU time of a step": r"decode_step_device_ms_batch_1",
    "TPOT": r"tpot_ms_batch_1|median_tpot_ms",
    "TTFT": r"ttft_ms_prompt_\d+|median_ttft_ms",
}
"""Column -> the figures that it may show. Of several prompts the longest whose interval excludes 1. A row stands in the
order of its first column that gains."""
DEFAULT_MODES = {"cuda": ("compiled", "CUDA graphs"), "cpu": ("eager",)}
"""Of the bench. The table shows others where lines are left."""
MOST_USED = "preset dense"
"""A model that the table shows on one GPU, in a default mode, also where others gain more."""
LINE_LENGTH = 120


@dataclass(frozen=True)
class Row:
    """place: among the rows that are shown, the lowest first. gain: the ratio of the first column that gains, and the
    column; 1 where none does. cells: column -> a ratio whose interval excludes 1. slower: figures with their ratios."""

    path: Path
    engine: str
    model: str
    place: int
    gain: tuple[float, str]
    cells: dict[str, str]
    slower: list[str]


def markdown(results: dict[Path, dict[str, Any]], beside: Path) -> str:
    """Results as they were read; those of other benches are left out. beside: the folder that links start from."""
    compared = [(path, comparison.of(plain)) for path, plain in results.items() if plain["kind"] in KINDS]
    compared.sort(key=lambda entry: entry[1].run["date"])
    found = [row for path, result in compared if result.active and (row := _row(path, result))]
    rows = list({(row.engine, row.model): row for row in found}.values())
    gaining = sorted((row for row in rows if row.gain[0] < 1), key=lambda row: row.gain)
    shown = sorted(gaining, key=lambda row: row.place)[:MOST_LINES]
    others = [row for row in gaining if row not in shown]
    table: Rows = [["engine, model", *COLUMNS]]
    for row in (row for row in gaining if row in shown):
        cells = [row.cells.get(column, "") for column in COLUMNS]
        table.append([f"{row.engine}: [{row.model}]({os.path.relpath(row.path, beside)})", *cells])
    texts = {
        "Other gains": _listed([(row, f"{row.model} {row.gain[0]:.3f} of the {row.gain[1]}") for row in others]),
        "Nothing gained": _listed([(row, row.model) for row in rows if not row.cells]),
        "Slower": _listed([(row, f"{row.model} ({figure})") for row in rows for figure in row.slower]),
    }
    wrap = {"width": LINE_LENGTH, "break_long_words": False, "break_on_hyphens": False}
    listed = [textwrap.fill(f"{what}: {names}.", **wrap) for what, names in texts.items() if names]
    return "\n\n".join([render(table), *listed])


def _listed(said: Sequence[tuple[Row, str]]) -> str:
    """By engine."""
    engines = dict.fromkeys(row.engine for row, _ in said)
    return "; ".join(f"{engine}: {', '.join(text for row, text in said if row.engine == engine)}" for engine in engines)


def _row(path: Path, result: Comparison) -> Row | None:
    """None without an interval. Where several figures fit a column, the last one is there: prompts grow."""
    ratios = {figure: result.ratio(figure) for figure in result.figures if figure != HOST}
    known = {figure: ratio for figure, ratio in ratios.items() if ratio and ratio.low is not None and ratio.high}
    if not known:
        return None
    sure = {figure: ratio for figure, ratio in known.items() if not ratio.low <= 1 <= ratio.high}
    shown = {column: figure for column, names in COLUMNS.items() for figure in sure if re.fullmatch(names, figure)}
    gains = [(sure[figure].ratio, column) for column, figure in shown.items() if sure[figure].ratio < 1]
    cells = {column: str(sure[figure]) for column, figure in shown.items()}
    if length := re.search(r"prompt_(\d+)", shown.get("TTFT", "")):
        cells["TTFT"] += f", {length[1]} tokens"
    slower = [f"{result.figures[figure]}: {ratio}" for figure, ratio in sure.items() if ratio.ratio > 1]
    run = result.run
    on_cuda, version = run["device"] == "cuda", run["versions"][run["engine"]].removesuffix("+cpu")
    machine = run["hardware"]["gpu"].removeprefix("NVIDIA ") if on_cuda else f"{run['hardware']['cores']} CPU cores"
    if (gpus := engine_arguments.gpus(run.get("engine_options", {}))) > 1:
        machine = f"{gpus} x {machine}"
    engine = f"{TITLES[run['engine']]} {version}, {machine}, {result.mode}"
    by_default = run["mode"] in DEFAULT_MODES[run["device"]]
    most_used = by_default and result.mode == run["mode"] and on_cuda and gpus == 1 and run["model"] == MOST_USED
    place = 0 if most_used else 1 if by_default else 2
    return Row(path, engine, presets.said(run["model"]), place, gains[0] if gains else (1.0, ""), cells, slower)
