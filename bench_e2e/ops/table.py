"""The tables of ops: the same cells for the terminal and for Markdown. Bold in Markdown is the fastest of a line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from serving_ops.bench_e2e.ops.contestants import OURS

Result = dict[str, Any]  # one element of the JSON's "results"
NOT_A_PEER = "eager"  # nobody serves with it; its times at large sizes are page faults
BANDWIDTH_REGIMES = ("prefill", "wide", "gated")
TITLES = {
    "rows": "us a call",
    "variants": "us a call of ours (over the plain call, the first column)",
    "decode": "us of device time a call in a CUDA graph, tensors in L2",
    "prefill": "us of device time a call, tensors several times the L2",
    "wide": "us of device time a call, tensors several times the L2",
    "small": "us of device time a call",
    "gated": "us a call, shape tokens x heads x head_dim, fp32 weight, norm before SiLU gate",
    "gemm": "us that one norm adds between two matrix products, in a CUDA graph",
    "host": "us of host time an eager call",
    "quant": "us of device time a call in a CUDA graph",
}


FORMS = {"block": ", to FP8 with a scale for 128 elements", "token": ", to FP8 with a scale for a row"}


@dataclass(frozen=True)
class Block:
    """One table: the lines of one regime, op, number of threads and form of the result."""

    title: str
    header: list[str]
    lines: list[list[str]]
    winners: list[str | None]  # of each line: the header of its fastest column


def render(path: Path) -> str:
    """A result file as Markdown."""
    return render_markdown(json.loads(path.read_text()))


def summarize(paths: Sequence[Path]) -> str:
    from serving_ops.bench_e2e.ops import summary

    return "\n\n".join(summary.render(json.loads(path.read_text())) for path in paths)


def blocks(report: dict[str, Any]) -> list[Block]:
    groups: dict[tuple[str, str, int | None, str | None], list[Result]] = {}
    for result in report["results"]:
        key = (result["regime"], result["op"], result["threads"], result.get("form"))
        groups.setdefault(key, []).append(result)
    return [_block(*key, results, report.get("copy_tb_s")) for key, results in groups.items()]


def render_markdown(report: dict[str, Any]) -> str:
    return markdown(report, blocks(report))


def markdown(report: dict[str, Any], shown: Iterable[Block]) -> str:
    """Every block as a Markdown table, with a title line above it."""
    parts = [_environment_line(report)]
    for block in shown:
        lines = ["| " + " | ".join(block.header) + " |", "|---|" + "---:|" * (len(block.header) - 1)]
        for cells, winner in zip(block.lines, block.winners, strict=True):
            marked = [f"**{cell}**" if name == winner else cell for name, cell in zip(block.header, cells, strict=True)]
            lines.append("| " + " | ".join(marked) + " |")
        parts.append(f"{block.title}\n\n" + "\n".join(lines))
    return "\n\n".join(parts)


def print_tables(shown: Iterable[Block], console: Console) -> None:
    for block in shown:
        table = Table(title=block.title, title_justify="left")
        for number, name in enumerate(block.header):
            table.add_column(name, justify="left" if number == 0 else "right", no_wrap=number == 0)
        for cells in block.lines:
            table.add_row(*cells)
        console.print(table)


def best_peer(result: Result) -> tuple[str, float] | None:
    """The fastest contestant that is neither ours nor eager, with its time over ours."""
    times = {name: entry["median_us"] for name, entry in result["times"].items() if name not in (OURS, NOT_A_PEER)}
    if not times or OURS not in result["times"]:
        return None
    name = min(times, key=lambda candidate: times[candidate])
    ratio = result["ratios"].get(name)
    return None if ratio is None else (name, ratio["median"])


def tb_s(result: Result, name: str) -> float:
    """Bytes that must move over the time taken, in 1e12 bytes a second."""
    return float(result["bytes_moved"] / result["times"][name]["median_us"] / 1e6)


def _block(
    regime: str, op: str, threads: int | None, form: str | None, results: Sequence[Result], copy_rate: float | None
) -> Block:
    names = columns(results)
    bandwidth = regime in BANDWIDTH_REGIMES and copy_rate is not None
    header = ["shape", *names]
    if regime != "variants":
        header.append("best peer / ours")
    if bandwidth:
        header += ["TB/s", "of copy rate"]
    lines = [_line(result, names, regime, copy_rate if bandwidth else None) for result in results]
    on_threads = "" if threads is None else f", {threads} thread{'s' if threads > 1 else ''}"
    to_form = "" if form is None else FORMS[form]
    title = f"{op}, {results[0]['dtype']}{to_form}{on_threads}: {TITLES[regime]}"
    return Block(title, header, lines, [fastest(result) if regime != "variants" else None for result in results])


def _line(result: Result, names: Sequence[str], regime: str, copy_rate: float | None) -> list[str]:
    shape = " x ".join(map(str, result["shape"])) + (" strided" if result["layout"] == "strided" else "")
    cells = [shape, *(_time_cell(result, name) for name in names)]
    if regime != "variants":
        peer = best_peer(result)
        cells.append("-" if peer is None else f"{peer[1]:.2f} ({peer[0]})")
    if copy_rate is not None:
        rate = tb_s(result, OURS) if OURS in result["times"] else None
        cells += ["-", "-"] if rate is None else [f"{rate:.2f}", f"{rate / copy_rate:.0%}"]
    return cells


def _time_cell(result: Result, name: str) -> str:
    if name in result["times"]:
        time = format_us(result["times"][name]["median_us"])
        against_plain = result["ratios"].get(name) if result["regime"] == "variants" else None
        return f"{time} ({against_plain['median']:.2f})" if against_plain else time
    return str(result["problems"].get(name, "-")).partition(":")[0]


def format_us(us: float) -> str:
    """Three digits or so: 1.27, 43.4, 2309."""
    return f"{us:.2f}" if us < 10 else f"{us:.1f}" if us < 1000 else f"{us:.0f}"


def columns(results: Iterable[Result]) -> list[str]:
    """Those with a time or a failure somewhere, in the order in which they were measured."""
    seen: dict[str, None] = {}
    for result in results:
        for name in result["contestants"]:
            if not str(result["problems"].get(name, "")).startswith("unsupported"):
                seen.setdefault(name)
    return list(seen)


def fastest(result: Result) -> str | None:
    times = {name: entry["median_us"] for name, entry in result["times"].items()}
    return min(times, key=lambda name: times[name]) if times else None


def _environment_line(report: dict[str, Any]) -> str:
    hardware = report["hardware"]
    machine = hardware["gpu"] if report["device"] == "cuda" else f"{hardware['cpu']}, {hardware['cores']} cores"
    versions = ", ".join(f"{name} {version}" for name, version in report["contestants"].items())
    copy = f" Copy rate {report['copy_tb_s']:.2f} TB/s." if report.get("copy_tb_s") else ""
    date = report["date"][:16].replace("T", " ")
    return f"{machine}; {versions}; {date} UTC.{copy} Medians of alternating rounds: `{report['command']}`"
