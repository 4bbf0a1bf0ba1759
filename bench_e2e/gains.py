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
from serving_ops.bench_e2e.stats import LEAST_PAIRS, Ratio
from serving_ops.bench_e2e.table import Block

MOST_LINES = 8
KINDS = ("serve", "step")
COLUMNS = {
    "TPOT": r"tpot_ms_batch_1|median_tpot_ms",
    "GPU time of a step": r"decode_step_device_ms_batch_1",
    "TTFT": r"ttft_ms_prompt_\d+|median_ttft_ms",
}
"""Column -> the figures that it may show. Of several prompts the longest whose interval excludes 1."""
ENGINES = {"vllm": "vLLM", "sglang": "SGLang"}
LINE_LENGTH = 120


@dataclass(frozen=True)
class Row:
    """ratios: column -> the figure and its ratio, where an interval excludes 1. slower: all above 1."""

    engine: str
    model: str
    link: str
    ratios: dict[str, tuple[str, Ratio]]
    slower: list[str]

    @property
    def best(self) -> float:
        return min((ratio.ratio for _, ratio in self.ratios.values()), default=1.0)


def markdown(results: dict[Path, dict[str, Any]], beside: Path) -> str:
    """Results as they were read; those of other benches are left out. beside: the folder that links start from."""
    rows = [_row(path, result, beside) for path, result in _chosen(results)]
    gaining = sorted((row for row in rows if row.best < 1), key=lambda row: row.best)
    shown, rest = gaining[:MOST_LINES], gaining[MOST_LINES:]
    lines = [[f"{row.engine}: [{row.model}]({row.link})", *(_cell(row, column) for column in COLUMNS)] for row in shown]
    texts = {
        "Smaller gains": _listed([(row, f"{row.model} {row.best:.3f}") for row in rest]),
        "Nothing gained": _listed([(row, row.model) for row in rows if not row.ratios]),
        "Slower": _listed([(row, f"{row.model} ({figure})") for row in rows for figure in row.slower]),
    }
    listed = [_wrapped(f"{what}: {names}.") for what, names in texts.items() if names]
    return "\n\n".join([Block(["engine, model", *COLUMNS], lines).markdown(), *listed])


def _listed(said: Sequence[tuple[Row, str]]) -> str:
    """By engine."""
    engines = dict.fromkeys(row.engine for row, _ in said)
    return "; ".join(f"{engine}: {', '.join(text for row, text in said if row.engine == engine)}" for engine in engines)


def _chosen(results: dict[Path, dict[str, Any]]) -> list[tuple[Path, Comparison]]:
    """In the order of their dates."""
    found: dict[tuple[str, ...], tuple[Path, Comparison]] = {}
    compared = [(path, comparison.of(plain)) for path, plain in results.items() if plain["kind"] in KINDS]
    for path, result in sorted(compared, key=lambda entry: (min(_pairs(entry[1]), LEAST_PAIRS), entry[1].run["date"])):
        has_interval = any(ratio and ratio.low is not None for ratio in map(result.ratio, result.figures))
        if result.active and has_interval:
            found[result.run["engine"], result.run["device"], result.run["model"], result.mode] = path, result
    return list(found.values())


def _pairs(result: Comparison) -> int:
    return min(map(len, result.pairs.values()))


def _row(path: Path, result: Comparison, beside: Path) -> Row:
    run = result.run
    gpu = str(run["hardware"]["gpu"]).removeprefix("NVIDIA ")
    machine = gpu if run["device"] == "cuda" else f"{run['hardware']['cores']} CPU cores"
    version = run["versions"][run["engine"]].removesuffix("+cpu")
    engine = f"{ENGINES[run['engine']]} {version}, {machine}, {result.mode}"
    ratios = {column: found for column, figures in COLUMNS.items() if (found := _differing(result, figures))}
    found = ((label, result.ratio(figure)) for figure, label in result.figures.items())
    slower = [f"{label}: {ratio}" for label, ratio in found if ratio and (ratio.low or 0.0) > 1]
    return Row(engine, presets.said(run["model"]), os.path.relpath(path, beside), ratios, slower)


def _differing(result: Comparison, figures: str) -> tuple[str, Ratio] | None:
    """A figure whose interval excludes 1."""
    fitting = [figure for figure in result.figures if re.fullmatch(figures, figure)]
    for figure in reversed(fitting):  # prompts grow
        ratio = result.ratio(figure)
        if ratio and ratio.low is not None and ratio.high is not None and not ratio.low <= 1 <= ratio.high:
            return figure, ratio
    return None


def _cell(row: Row, column: str) -> str:
    figure, ratio = row.ratios.get(column, ("", None))
    tokens = re.findall(r"prompt_(\d+)", figure)
    return "" if ratio is None else ", ".join([str(ratio), *(f"{count} tokens" for count in tokens)])


def _wrapped(text: str) -> str:
    return textwrap.fill(text, LINE_LENGTH, break_long_words=False, break_on_hyphens=False)
