"""The tables: for each op, dtype and pass a line a size, with everyone's time and how it compares with ours."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from serving_ops.bench_e2e.ops.contestants import OURS
from serving_ops.bench_e2e.ops.table import Block, Result, columns, fastest, format_us, markdown, tb_s


def render(path: Path) -> str:
    """A result file as Markdown."""
    report = json.loads(path.read_text())
    return markdown(report, blocks(report))


def blocks(report: dict[str, Any]) -> list[Block]:
    groups: dict[tuple[Any, ...], list[Result]] = {}
    for result in report["results"]:
        key = tuple(result[name] for name in ("op", "dtype", "threads", "passes"))
        groups.setdefault(key, []).append(result)
    return [_block(results, report.get("copy_tb_s")) for results in groups.values()]


def _block(results: Sequence[Result], copy_rate: float | None) -> Block:
    first, names = results[0], columns(results)
    threads = "" if first["threads"] is None else f", {first['threads']} thread{'s' if first['threads'] > 1 else ''}"
    title = f"`{first['op']}`, {first['dtype']}{threads}, {first['passes']}: us a call (its ratio to ours)"
    header = ["shape", *names, "GB/s of ours", *(["of copy rate"] if copy_rate else [])]
    return Block(title, header, [_line(result, names, copy_rate) for result in results], [*map(fastest, results)])


def _line(result: Result, names: Sequence[str], copy_rate: float | None) -> list[str]:
    rate = tb_s(result, OURS) if OURS in result["times"] else None
    rates = ["-" if rate is None else f"{1000 * rate:.0f}"]
    if copy_rate:
        rates.append("-" if rate is None else f"{rate / copy_rate:.0%}")
    return [" x ".join(map(str, result["shape"])), *(_cell(result, name) for name in names), *rates]


def _cell(result: Result, name: str) -> str:
    if name not in result["times"]:
        return str(result["problems"].get(name, "-")).partition(":")[0]
    ratio = result["ratios"].get(name)
    return format_us(result["times"][name]["median_us"]) + (f" ({ratio['median']:.2f})" if ratio else "")
