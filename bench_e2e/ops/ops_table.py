"""The tables of ops: a line a size, with everyone's time; in a summary, a line a regime and op. Bold is the fastest."""

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from serving_ops.bench_e2e.comparison import OURS
from serving_ops.bench_e2e.result_file import machine, shown_command
from serving_ops.bench_e2e.table import Rows, beside, render

Result = dict[str, Any]  # one element of the JSON's "results"
NO_PEERS = (OURS, "eager", "copy")  # nobody serves with eager, whose times at large sizes are page faults
OF_OURS = ("variants", "calls")  # regimes that compare ours with itself
BANDWIDTH_REGIMES = ("prefill", "wide", "gated", "rows", "large", "narrow")
IN_A_GRAPH = "us of device time a call in a CUDA graph"
REGIMES = {  # what a table has, which is the same where a table has both, and a line of the summary
    **dict.fromkeys(("rows", "large", "narrow"), ("us a call", None)),
    "variants": ("us a call of ours (over the plain call, the first column)", None),
    "calls": ("us a call of the public functions (over the plain norm's, the first column)", None),
    "decode": (f"{IN_A_GRAPH}, tensors in L2", "decode, 1 to 256 rows"),
    "prefill": ("us of device time a call, tensors several times the L2", "prefill"),
    "wide": ("us of device time a call, wide rows", "wide rows"),
    "small": ("us of device time a call", "narrow rows"),
    "gated": ("us a call, shape tokens x heads x head_dim, fp32 weight, norm before SiLU gate", "heads of 128"),
    "gemm": ("us that one norm adds between two matrix products, in a CUDA graph", "between two products"),
    "host": ("us of host time an eager call", "host time of an eager call"),
    "quant": (IN_A_GRAPH, "1 to 8192 rows to FP8"),
    "int8": ("us a call", "1 to 512 rows to INT8"),
    "rope": (f"{IN_A_GRAPH}, shape tokens x q heads x kv heads x head_dim", "1 to 8192 tokens"),
}
FORMS = {
    "cached": ", with k and v written to a cache",
    "block": ", to FP8 with a scale for 128 elements",
    "token": ", to FP8 with a scale for a row",
    "int8": ", to INT8 with a scale for a row",
}
SUMMARY = ("", "sizes", "ours fastest", "best peer / ours, median", "lowest", "of copy rate")


def markdown(report: dict[str, Any]) -> str:
    """Eager and Inductor have torch's version; without them it is named too."""
    torch = {} if "eager" in report["contestants"] else {"torch": report["versions"]["torch"]}
    versions = ", ".join(f"{name} {version}" for name, version in (report["contestants"] | torch).items())
    copy = f" Copy rate {report['copy_tb_s']:.2f} TB/s." if report.get("copy_tb_s") else ""
    date = report["date"][:16].replace("T", " ")
    head = f"{machine(report)}; {versions}; {date} UTC.{copy} Medians of alternating rounds: `{shown_command(report)}`"
    return "\n\n".join([head, *(f"{title}\n\n{render(rows)}" for title, rows in tables(report))])


def tables(report: dict[str, Any]) -> list[tuple[str, Rows]]:
    """Title and rows for each regime, op, dtype, number of threads, form of the result, and pass."""
    return [(title, _rows(group, report.get("copy_tb_s"))) for title, group in _grouped(report["results"], _title)]


def summary(reports: Sequence[dict[str, Any]]) -> str:
    """For each regime and op, at how many sizes ours is the fastest, and how far ahead or behind."""
    found = []
    for report in reports:
        shown = [result for result in report["results"] if REGIMES[result["regime"]][1] and best_peer(result)]
        groups = _grouped(shown, lambda result: f"`{result['op']}`, {REGIMES[result['regime']][1]}")
        lines = [_summary_line(what, results, report.get("copy_tb_s")) for what, results in groups]
        found.append(render([SUMMARY, *lines]))
    return "\n\n".join(found)


def line(result: Result) -> str:
    times = ", ".join(f"{name} {format_us(of['median_us'])}" for name, of in result["times"].items())
    failed = {name: why for name, why in result["problems"].items() if not why.startswith("unsupported")}
    problems = "".join(f"\n    {name}: {why}" for name, why in failed.items())
    return f"{_shape(result)} {_title(result)}: {times}{problems}"


def compared(a: dict[str, Any], b: dict[str, Any]) -> Rows:
    times: list[dict[str, float]] = [{}, {}]
    for report, found in zip((a, b), times, strict=True):
        for result in (result for result in report["results"] if OURS in result["times"]):
            case = f"{result['regime']}: {_shape(result)} {_title(result).partition(':')[0]}"
            found[case] = result["times"][OURS]["median_us"]
    return beside(f"us of {OURS}", *times)


def _grouped(results: Sequence[Result], key: Callable[[Result], str]) -> list[tuple[str, list[Result]]]:
    titles = dict.fromkeys(map(key, results))
    return [(title, [result for result in results if key(result) == title]) for title in titles]


def _title(result: Result) -> str:
    form, count, passes = FORMS.get(result.get("form"), ""), result["threads"], result.get("passes", "forward")
    threads = f", {count} thread{'s' * (count > 1)}" if count else ""
    gradients = "" if passes == "forward" else f", {passes}"
    return f"{result['op']}, {result['dtype']}{form}{threads}{gradients}: {REGIMES[result['regime']][0]}"


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


def _rows(results: Sequence[Result], copy_rate: float | None) -> Rows:
    """Columns are those with a time or a failure somewhere, in the order in which they were measured."""
    found = ((name, str(result["problems"].get(name, ""))) for result in results for name in result["contestants"])
    names = dict.fromkeys(name for name, problem in found if not problem.startswith("unsupported"))
    lines = [_cells(result, list(names), copy_rate) for result in results]
    return [list(lines[0]), *(list(cells.values()) for cells in lines)]


def _cells(result: Result, names: Sequence[str], copy_rate: float | None) -> dict[str, str]:
    of_ours, cells = result["regime"] in OF_OURS, {"shape": _shape(result)}
    times = {name: entry["median_us"] for name, entry in result["times"].items()}
    fastest = min((name for name in times if name != "copy"), key=times.__getitem__, default="")
    for name in names:
        cells[name] = str(result["problems"].get(name, "-")).partition(":")[0]
        if name in times and of_ours:
            ratio = result["ratios"].get(name)
            cells[name] = format_us(times[name]) + (f" ({ratio['median']:.2f})" if ratio else "")
        elif name in times:
            cells[name] = f"**{format_us(times[name])}**" if name == fastest else format_us(times[name])
    if not of_ours:
        peer = best_peer(result)
        cells["best peer / ours"] = f"{peer[1]:.2f} ({peer[0]})" if peer else "-"
    if copy_rate and result["regime"] in BANDWIDTH_REGIMES:
        rate = tb_s(result, OURS) if OURS in result["times"] else None
        cells |= {"TB/s": f"{rate:.2f}" if rate else "-", "of copy rate": f"{rate / copy_rate:.0%}" if rate else "-"}
    return cells


def _shape(result: Result) -> str:
    return " x ".join(map(str, result["shape"])) + (" strided" if result["layout"] == "strided" else "")


def format_us(us: float) -> str:
    """Three digits or so: 1.27, 43.4, 2309."""
    return f"{us:.2f}" if us < 10 else f"{us:.1f}" if us < 1000 else f"{us:.0f}"


def _summary_line(what: str, results: list[Result], copy_rate: float | None) -> tuple[str, ...]:
    """The last cell is the lowest and the highest share of the copy rate, where data does not stay in a cache."""
    peers = [peer for peer in map(best_peer, results) if peer is not None]
    (name, ratio), lowest = min(zip(peers, results, strict=True), key=lambda pair: pair[0][1])
    where = f"{ratio:.2f} ({name}, {_shape(lowest)})" if len(results) > 1 else f"{ratio:.2f} ({name})"
    if len(results) == 1:
        what += f": {format_us(lowest['times'][OURS]['median_us'])} us"
    shares = [tb_s(result, OURS) / copy_rate for result in results] if copy_rate else []
    bounded = shares and lowest["regime"] in BANDWIDTH_REGIMES and lowest["op"] != "rms_norm_gated"
    ratios = [ratio for _, ratio in peers]
    ahead, median = str(sum(ratio > 1.0 for ratio in ratios)), f"{statistics.median(ratios):.2f}"
    return what, str(len(results)), ahead, median, where, f"{min(shares):.0%} to {max(shares):.0%}" if bounded else ""
