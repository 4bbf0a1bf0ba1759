"""The tables of served models: on the terminal, and in Markdown."""

from __future__ import annotations

from pathlib import Path

from rich import box
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from serving_ops.bench_e2e import table as markdown_table
from serving_ops.bench_e2e.result import BASELINE, OURS, Result, load_result
from serving_ops.bench_e2e.stats import RATIO_METHOD, Ratio, Spread

DISTURBED = 1.25  # times a variant's median; of 22 servers on 2 cores, those left alone stayed within 1.11
ROWS = tuple(
    (f"{metric.upper()} {figure}", f"{figure}_{metric}_ms")
    for metric in ("ttft", "tpot")
    for figure in ("median", "p90", "p99")
)


def print_result(result: Result, console: Console) -> None:
    if not result.active():
        console.print(Panel(inactive_warning(result), style="bold red", title="serving_ops was not active"))
    table = Table(
        title=title(result),
        caption=caption(result),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column("ms", no_wrap=True)
    for variant in result.rounds:
        table.add_column(variant, justify="right", no_wrap=True)
    if result.compared:
        table.add_column(f"{OURS} / {BASELINE}", justify="right", no_wrap=True)
    for label, metric in ROWS:
        cells = [Text(spread_text(result.spread(variant, metric))) for variant in result.rounds]
        ratio = [_coloured(result.ratio(metric))] if result.compared else []
        table.add_row(label, *cells, *ratio, end_section=label.startswith("TTFT p99"))
    console.print(table)
    if disturbed(result):
        console.print(
            f"[yellow]disturbed: {', '.join(disturbed(result))}; the intervals are wide for that reason, "
            "run again on a quiet machine[/yellow]"
        )


def title(result: Result) -> str:
    version = result.versions[result.engine]
    return f"{result.model} on {result.engine} {version}, {result.device}, {result.mode}"


def rounds(result: Result) -> str:
    return f"{result.rounds_each} round{'' if result.rounds_each == 1 else 's'}"


def load(result: Result) -> str:
    asked = result.load
    return (
        f"{asked.num_prompts} requests a round, {asked.input_len} tokens in, {asked.output_len} out, "
        f"{asked.concurrency} in flight"
    )


def disturbed(result: Result) -> list[str]:
    """The servers that something else on the machine slowed down: far above their variant's median."""
    return [
        f"round {entry.number} {variant}"
        for variant, entries in result.rounds.items()
        for entry in entries
        if any(
            entry.times_ms[metric] > DISTURBED * result.spread(variant, metric).median
            for metric in ("median_ttft_ms", "median_tpot_ms")
        )
    ]


def caption(result: Result) -> str:
    return (
        f"Median over {rounds(result)}, in brackets lowest and highest; median, p90 and p99 are over a "
        f"round's requests. {load(result)}. Ratio, below 1 is faster: {RATIO_METHOD}."
    )


def inactive_warning(result: Result) -> str:
    lines = {entry.plugin_line or "(the plugin said nothing)" for entry in result.rounds[OURS]}
    return "Both variants ran native code; the ratio says nothing about serving_ops.\n" + "\n".join(sorted(lines))


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
        return f"{value.ratio:.3f} [1 round]"
    return f"{value.ratio:.3f} [{value.low:.3f}-{value.high:.3f}]"


def _coloured(value: Ratio | None) -> Text:
    if value is None or value.low is None or value.high is None or value.low <= 1 <= value.high:
        style = ""
    else:
        style = "green" if value.high < 1 else "red"
    return Text(ratio_text(value), style=style)


def render(path: Path) -> str:
    """A result file as Markdown."""
    return markdown(load_result(path))


def markdown(result: Result) -> str:
    ratio_column = [f"{OURS} / {BASELINE}, 95% interval"] if result.compared else []
    header = ["ms", *result.rounds, *ratio_column]
    lines = markdown_table.rows([header, *(_row(result, label, metric) for label, metric in ROWS)])
    return f"{_heading(result)}\n\n{lines}\n\n{_note(result)}"


def _row(result: Result, label: str, metric: str) -> list[str]:
    cells = [spread_text(result.spread(variant, metric)) for variant in result.rounds]
    return [label, *cells, *([ratio_text(result.ratio(metric))] if result.compared else [])]


def _heading(result: Result) -> str:
    head = f"**{result.model}, {result.mode}**: {result.circumstances}"
    return head if result.active() else f"{head}. **serving_ops was not active: this compares native with itself.**"


def _note(result: Result) -> str:
    return f"{load(result)}; median over {rounds(result)} [lowest-highest]; ratio: {RATIO_METHOD}. `{result.command}`"
