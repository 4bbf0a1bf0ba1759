"""A run in a few lines: for each regime and op at how many sizes ours is the fastest, and how far ahead or behind."""

from __future__ import annotations

import statistics
from typing import Any

from serving_ops.bench_e2e.ops.contestants import OURS
from serving_ops.bench_e2e.ops.table import BANDWIDTH_REGIMES, Result, best_peer, format_us, tb_s

HEADER = ("", "sizes", "ours fastest", "best peer / ours, median", "lowest", "of copy rate")
REGIMES = {
    "decode": "decode, 1 to 256 rows",
    "prefill": "prefill",
    "wide": "wide rows",
    "small": "narrow rows",
    "gated": "heads of 128",
    "gemm": "between two products",
    "host": "host time of an eager call",
    "quant": "1 to 8192 rows to FP8",
}


def render(report: dict[str, Any]) -> str:
    """A Markdown table of a report on CUDA; regimes without a peer are left out."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in report["results"]:
        if result["regime"] in REGIMES and best_peer(result) is not None:
            groups.setdefault((result["op"], result["regime"]), []).append(result)
    lines = [_line(op, regime, results, report.get("copy_tb_s")) for (op, regime), results in groups.items()]
    rows = [HEADER, ("---", *["---:"] * (len(HEADER) - 1)), *lines]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def _line(op: str, regime: str, results: list[Result], copy_rate: float | None) -> tuple[str, ...]:
    peers = [peer for peer in map(best_peer, results) if peer is not None]
    ratios = [ratio for _, ratio in peers]
    lowest = results[ratios.index(min(ratios))]
    ahead = sum(ratio > 1.0 for ratio in ratios)
    name, ratio = min(peers, key=lambda peer: peer[1])
    shape = " x ".join(map(str, lowest["shape"])) + (" strided" if lowest["layout"] == "strided" else "")
    where = f"{ratio:.2f} ({name}, {shape})" if len(results) > 1 else f"{ratio:.2f} ({name})"
    what = f"`{op}`, {REGIMES[regime]}"
    if len(results) == 1:
        what += f": {format_us(results[0]['times'][OURS]['median_us'])} us"
    return what, str(len(results)), str(ahead), f"{statistics.median(ratios):.2f}", where, _rates(results, copy_rate)


def _rates(results: list[Result], copy_rate: float | None) -> str:
    """The lowest and the highest share, where the data does not stay in a cache."""
    if copy_rate is None or results[0]["regime"] not in BANDWIDTH_REGIMES or results[0]["op"] == "rms_norm_gated":
        return ""
    shares = [tb_s(result, OURS) / copy_rate for result in results]
    return f"{min(shares):.0%} to {max(shares):.0%}"
