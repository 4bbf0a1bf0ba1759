"""The tables of ops: a line a size, with everyone's time; in a summary, a line a regime and op. Bold is the fastest."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from serving_ops.bench_e2e.comparison import OURS
from serving_ops.bench_e2e.result_file import machine
from serving_ops.bench_e2e.table import Block

Result = dict[str, Any]  # one element of the JSON's "results"
NO_PEERS = (OURS, "eager", "copy")  # nobody serves with eager, whose times at large sizes are page faults
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
    "int8": "us a call",
    "rope": "us of device time a call in a CUDA graph, shape tokens x q heads x kv heads x head_dim",
    "rope-plans": "us of device time a call of ours by its plan (over the plan), shape as in rope",
}
FORMS = {
    "cached": ", with k and v written to a cache",
    "block": ", to FP8 with a scale for 128 elements",
    "token": ", to FP8 with a scale for a row",
    "int8": ", to INT8 with a scale for a row",
}
SUMMARY = ("", "sizes", "ours fastest", "best peer / ours, median", "lowest", "of copy rate")
REGIMES = {
    "decode": "decode, 1 to 256 rows",
    "prefill": "prefill",
    "wide": "wide rows",
    "small": "narrow rows",
    "gated": "heads of 128",
    "gemm": "between two products",
    "host": "host time of an eager call",
    "quant": "1 to 8192 rows to FP8",
    "int8": "1 to 512 rows to INT8",
    "rope": "1 to 8192 tokens",
}


def markdown(report: dict[str, Any]) -> str:
    return "\n\n".join([_environment_line(report), *(block.markdown() for block in blocks(report))])


def blocks(report: dict[str, Any]) -> list[Block]:
    """A table for each regime, op, number of threads and form of the result; with gradients, for each op and pass."""
    trained = report["kind"] == "training"
    key = ("op", "dtype", "threads", "passes") if trained else ("regime", "op", "threads", "form")
    copy_rate = report.get("copy_tb_s")
    return [_block(results, copy_rate, trained=trained) for results in _grouped(report["results"], key)]


def summary(reports: Sequence[dict[str, Any]]) -> str:
    """For each regime and op, at how many sizes ours is the fastest, and how far ahead or behind."""
    return "\n\n".join(map(_summary, reports))


def _summary(report: dict[str, Any]) -> str:
    shown = [result for result in report["results"] if result["regime"] in REGIMES and best_peer(result) is not None]
    lines = [_summary_line(results, report.get("copy_tb_s")) for results in _grouped(shown, ("op", "regime"))]
    return Block(SUMMARY, lines).markdown()


def _grouped(results: Iterable[Result], key: Sequence[str]) -> list[list[Result]]:
    groups: dict[tuple[Any, ...], list[Result]] = {}
    for result in results:
        groups.setdefault(tuple(result.get(name) for name in key), []).append(result)
    return list(groups.values())


def best_peer(result: Result) -> tuple[str, float] | None:
    """The fastest of the others that compute the same and are served with, and its time over ours."""
    times = {name: entry["median_us"] for name, entry in result["times"].items() if name not in NO_PEERS}
    if not times or OURS not in result["times"]:
        return None
    name = min(times, key=lambda candidate: times[candidate])
    ratio = result["ratios"].get(name)
    return None if ratio is None else (name, ratio["median"])


def tb_s(result: Result, name: str) -> float:
    """Bytes that must move over the time taken, in 1e12 bytes a second."""
    return float(result["bytes_moved"] / result["times"][name]["median_us"] / 1e6)


def _block(results: Sequence[Result], copy_rate: float | None, *, trained: bool) -> Block:
    first, names = results[0], columns(results)
    regime, variants = first["regime"], first["regime"] in ("variants", "rope-plans")
    cells: dict[str, Callable[[Result], str]] = {"shape": _shape}
    cells |= {name: partial(_time_cell, name=name, with_ratio=trained or variants) for name in names}
    if not trained and not variants:
        cells["best peer / ours"] = _peer_cell
    if trained:
        cells["GB/s of ours"] = partial(_rate_cell, times=1000, form=".0f")
    if copy_rate and (trained or regime in BANDWIDTH_REGIMES):
        cells |= {} if trained else {"TB/s": partial(_rate_cell, times=1, form=".2f")}
        cells["of copy rate"] = partial(_rate_cell, times=1 / copy_rate, form=".0%")
    if trained:
        title = f"`{first['op']}`, {first['dtype']}{_threads(first)}, {first['passes']}: us a call (its ratio to ours)"
    else:
        title = f"{first['op']}, {first['dtype']}{FORMS.get(first.get('form'), '')}{_threads(first)}: {TITLES[regime]}"
    lines = [[cell(result) for cell in cells.values()] for result in results]
    return Block(list(cells), lines, title, [None if variants else _fastest(result, list(cells)) for result in results])


def _peer_cell(result: Result) -> str:
    peer = best_peer(result)
    return "-" if peer is None else f"{peer[1]:.2f} ({peer[0]})"


def _rate_cell(result: Result, times: float, form: str) -> str:
    return format(tb_s(result, OURS) * times, form) if OURS in result["times"] else "-"


def _threads(result: Result) -> str:
    count = result["threads"]
    return "" if count is None else f", {count} thread{'s' if count > 1 else ''}"


def _shape(result: Result) -> str:
    return " x ".join(map(str, result["shape"])) + (" strided" if result["layout"] == "strided" else "")


def _time_cell(result: Result, name: str, *, with_ratio: bool) -> str:
    if name in result["times"]:
        time = format_us(result["times"][name]["median_us"])
        ratio = result["ratios"].get(name) if with_ratio else None
        return f"{time} ({ratio['median']:.2f})" if ratio else time
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


def _fastest(result: Result, header: Sequence[str]) -> int | None:
    """The place of the fastest in a line."""
    times = {name: entry["median_us"] for name, entry in result["times"].items() if name != "copy"}
    return header.index(min(times, key=lambda name: times[name])) if times else None


def _environment_line(report: dict[str, Any]) -> str:
    """Eager and Inductor have torch's version; without them it is named too."""
    torch = {} if "eager" in report["contestants"] else {"torch": report["versions"]["torch"]}
    versions = ", ".join(f"{name} {version}" for name, version in (report["contestants"] | torch).items())
    copy = f" Copy rate {report['copy_tb_s']:.2f} TB/s." if report.get("copy_tb_s") else ""
    date = report["date"][:16].replace("T", " ")
    return f"{machine(report)}; {versions}; {date} UTC.{copy} Medians of alternating rounds: `{report['command']}`"


def _summary_line(results: list[Result], copy_rate: float | None) -> tuple[str, ...]:
    peers = [peer for peer in map(best_peer, results) if peer is not None]
    ratios = [ratio for _, ratio in peers]
    lowest = results[ratios.index(min(ratios))]
    name, ratio = min(peers, key=lambda peer: peer[1])
    where = f"{ratio:.2f} ({name}, {_shape(lowest)})" if len(results) > 1 else f"{ratio:.2f} ({name})"
    what = f"`{lowest['op']}`, {REGIMES[lowest['regime']]}"
    if len(results) == 1:
        what += f": {format_us(lowest['times'][OURS]['median_us'])} us"
    ahead = str(sum(ratio > 1.0 for ratio in ratios))
    return what, str(len(results)), ahead, f"{statistics.median(ratios):.2f}", where, _rates(results, copy_rate)


def _rates(results: list[Result], copy_rate: float | None) -> str:
    """The lowest and the highest share, where the data does not stay in a cache."""
    if copy_rate is None or results[0]["regime"] not in BANDWIDTH_REGIMES or results[0]["op"] == "rms_norm_gated":
        return ""
    shares = [tb_s(result, OURS) / copy_rate for result in results]
    return f"{min(shares):.0%} to {max(shares):.0%}"
