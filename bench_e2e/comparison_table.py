"""The tables of comparisons: a line a figure; in a summary, a line is a result and a column the ratio of a figure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from serving_ops.bench_e2e import comparison
from serving_ops.bench_e2e.comparison import BASELINE, OURS, Comparison
from serving_ops.bench_e2e.stats import Ratio, Spread
from serving_ops.bench_e2e.table import Block

INVARIANT = {"VLLM_BATCH_INVARIANT=1": "VLLM_BATCH_INVARIANT=1", "enable_deterministic_inference": "deterministic"}
"""Settings of engines, as a command has them and as a title: they change what every figure is compared with."""
INACTIVE = "serving_ops was not active: this compares native with itself"


def block(result: Comparison) -> Block:
    shown = [variant for variant in (BASELINE, OURS) if variant in result.pairs]
    compared = [variant for variant in result.pairs if variant != BASELINE and BASELINE in result.pairs]
    ratios = [f"{variant} / {BASELINE}{', 95% interval' if variant == OURS else ''}" for variant in compared]
    lines = [
        [
            label,
            *(spread_text(result.spread(variant, figure)) for variant in shown),
            *(ratio_text(result.ratio(figure, variant)) for variant in compared),
        ]
        for figure, label in result.figures.items()
    ]
    return Block(["ms", *shown, *ratios], lines)


def markdown(plain: dict[str, Any]) -> str:
    """Without how ratios are made, which is the same for all, and which docs/bench.md says once."""
    result = comparison.of(plain)
    head = f"**{title(result)}**: {result.circumstances}"
    head = head if result.active else f"{head}. **{INACTIVE}.**"
    method = re.split(r"[.;] ratio:", result.run["method"], maxsplit=1, flags=re.IGNORECASE)[0].removesuffix(".")
    return f"{head}\n\n{block(result).markdown()}\n\n{method}. `{result.run['command']}`"


def summary(plains: Sequence[dict[str, Any]]) -> str:
    """A line a result, a column a figure: serving_ops over native. Of several engines each line has its name."""
    results = [comparison.of(plain) for plain in plains]
    columns = {figure: label for result in results for figure, label in result.figures.items()}
    cells = [
        [ratio_text(result.ratio(figure)) if figure in result.figures else "" for figure in columns]
        for result in results
    ]
    several = len({result.run["engine"] for result in results}) > 1
    names = [f"{result.run['engine']}, {title(result)}" if several else title(result) for result in results]
    lines = [[name, *ratios] for name, ratios in zip(names, cells, strict=True)]
    return Block([f"{OURS} / {BASELINE}", *columns.values()], lines).markdown()


def show(result: Comparison, console: Console) -> None:
    console.print(f"\n[bold]{title(result)}[/bold]: {result.circumstances}", soft_wrap=True)
    block(result).print(console)
    console.print(result.run["method"], markup=False, soft_wrap=True)
    if not result.active:
        console.print(f"[bold red]{INACTIVE}[/bold red]")
        for line in dict.fromkeys(result.plugin_lines[OURS]):
            console.print(f"  {line or '(the plugin said nothing)'}", markup=False, soft_wrap=True)


def title(result: Comparison) -> str:
    return f"{result.run['model']}, {mode(result)}"


def mode(result: Comparison) -> str:
    """With the settings that change what every figure is compared with."""
    words = result.run["command"]
    return ", ".join([result.run["mode"], *(f"`{shown}`" for given, shown in INVARIANT.items() if given in words)])


def spread_text(value: Spread) -> str:
    """At most 19 characters, so that the whole table fits into 80."""
    digits = 1 if value.high >= 100 else 2
    if value.low == value.high:
        return f"{value.median:.{digits}f}"
    return f"{value.median:.{digits}f} [{value.low:.{digits}f}-{value.high:.{digits}f}]"


def ratio_text(value: Ratio | None) -> str:
    if value is None:
        return "none"
    if value.low is None:
        return f"{value.ratio:.3f} [{value.pairs} pair{'' if value.pairs == 1 else 's'}]"
    return f"{value.ratio:.3f} [{value.low:.3f}-{value.high:.3f}]"
