"""Who gains: a line an engine and model, with the ratios whose interval excludes 1, and a list of who gains nothing.

Each engine, machine, model and mode counts once, by its result with the most pairs; of several with at least 5 pairs by
the newest. Results whose pairs are too few for an interval, and those of a plugin that was not on, say nothing here.
"""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving_ops.bench_e2e import comparison, presets
from serving_ops.bench_e2e.comparison import Comparison
from serving_ops.bench_e2e.environment import ENGINES
from serving_ops.bench_e2e.stats import LEAST_PAIRS, Ratio
from serving_ops.bench_e2e.step_engine import HOST
from serving_ops.bench_e2e.table import Block

MOST_LINES = 8
KINDS = ("serve", "step")
COLUMNS = {
    "TPOT": r"tpot_ms_batch_1|median_tpot_ms",
    "GPU time of a step": r"decode_step_device_ms_batch_1",
    "TTFT": r"ttft_ms_prompt_\d+|median_ttft_ms",
}
"""Column -> the figures that it may show. Of several prompts the longest whose interval excludes 1."""
LINE_LENGTH = 120


@dataclass(frozen=True)
class Row:
    """ratios: figure -> its ratio, where an interval excludes 1."""

    path: Path
    result: Comparison
    ratios: dict[str, Ratio]

    @property
    def engine(self) -> str:
        run = self.result.run
        machine = f"{run['hardware']['cores']} CPU cores"
        if run["device"] == "cuda":
            machine = str(run["hardware"]["gpu"]).removeprefix("NVIDIA ")
        version = run["versions"][run["engine"]].removesuffix("+cpu")
        return f"{ENGINES[run['engine']].title} {version}, {machine}, {self.result.mode}"

    @property
    def model(self) -> str:
        return presets.said(self.result.run["model"])

    @property
    def columns(self) -> dict[str, tuple[str, Ratio]]:
        """Column -> the figure and its ratio."""
        found = {}
        for figure, ratio in self.ratios.items():  # prompts grow
            found |= {column: (figure, ratio) for column, shown in COLUMNS.items() if re.fullmatch(shown, figure)}
        return found

    @property
    def best(self) -> float:
        return min((ratio.ratio for _, ratio in self.columns.values()), default=1.0)

    @property
    def slower(self) -> list[str]:
        named = ((self.result.figures[figure], ratio) for figure, ratio in self.ratios.items())
        return [f"{label}: {ratio}" for label, ratio in named if ratio.ratio > 1]


def markdown(results: dict[Path, dict[str, Any]], beside: Path) -> str:
    """Results as they were read; those of other benches are left out. beside: the folder that links start from."""
    rows = _rows(results)
    gaining = sorted((row for row in rows if row.best < 1), key=lambda row: row.best)
    lines = [
        [f"{row.engine}: [{row.model}]({os.path.relpath(row.path, beside)})", *(_cell(row, name) for name in COLUMNS)]
        for row in gaining[:MOST_LINES]
    ]
    texts = {
        "Smaller gains": _listed([(row, f"{row.model} {row.best:.3f}") for row in gaining[MOST_LINES:]]),
        "Nothing gained": _listed([(row, row.model) for row in rows if not row.columns]),
        "Slower": _listed([(row, f"{row.model} ({figure})") for row in rows for figure in row.slower]),
    }
    wrap = {"width": LINE_LENGTH, "break_long_words": False, "break_on_hyphens": False}
    listed = [textwrap.fill(f"{what}: {names}.", **wrap) for what, names in texts.items() if names]
    return "\n\n".join([Block(["engine, model", *COLUMNS], lines).markdown(), *listed])


def _listed(said: Sequence[tuple[Row, str]]) -> str:
    """By engine."""
    engines = dict.fromkeys(row.engine for row, _ in said)
    return "; ".join(f"{engine}: {', '.join(text for row, text in said if row.engine == engine)}" for engine in engines)


def _rows(results: dict[Path, dict[str, Any]]) -> list[Row]:
    """In the order of their dates."""
    compared = [(path, comparison.of(plain)) for path, plain in results.items() if plain["kind"] in KINDS]
    found: dict[tuple[str, str], Row] = {}
    for path, result in sorted(compared, key=_pairs_and_date):
        ratios = {figure: result.ratio(figure) for figure in result.figures if figure != HOST}
        known = {figure: ratio for figure, ratio in ratios.items() if ratio and ratio.low is not None and ratio.high}
        if result.active and known:
            row = Row(path, result, {figure: of for figure, of in known.items() if not of.low <= 1 <= of.high})
            found[row.engine, result.run["model"]] = row
    return list(found.values())


def _pairs_and_date(entry: tuple[Path, Comparison]) -> tuple[int, str]:
    return min(LEAST_PAIRS, *map(len, entry[1].pairs.values())), entry[1].run["date"]


def _cell(row: Row, column: str) -> str:
    figure, ratio = row.columns.get(column, ("", ""))
    return ", ".join([str(ratio), *(f"{count} tokens" for count in re.findall(r"prompt_(\d+)", figure))])
