"""The picture: every round a point, so that a difference smaller than the noise looks like one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from serving_ops.bench_e2e.report import load, ratio_text, rounds, title
from serving_ops.bench_e2e.result import BASELINE, OURS, Result

PANELS = (("TTFT", "ttft"), ("TPOT", "tpot"))
FIGURES = ("median", "p90", "p99")
COLOURS = {BASELINE: "#8a8f98", OURS: "#0a7f5a"}
SIZE_INCHES, DOTS_PER_INCH = (10.0, 5.0), 150
WIDTH = 0.36  # of a bar, in units of one figure's place


def write_plot(result: Result, path: Path) -> Path:
    """Draw `result` as PNG. Needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE_INCHES, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{title(result)}\n{result.machine}", fontsize=11)
    for place, (label, metric) in enumerate(PANELS, start=1):
        _panel(figure.add_subplot(1, len(PANELS), place), result, label, metric)
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper right", frameon=False, fontsize=9)
    figure.supxlabel(_footer(result), fontsize=8, color="#555555")
    figure.savefig(path, dpi=DOTS_PER_INCH)
    return path


def _panel(axes: Any, result: Result, label: str, metric: str) -> None:
    names = [f"{figure}_{metric}_ms" for figure in FIGURES]
    variants = list(result.rounds)
    for index, variant in enumerate(variants):
        centre = (index - (len(variants) - 1) / 2) * WIDTH
        medians = [result.spread(variant, name).median for name in names]
        places = [place + centre for place in range(len(names))]
        axes.bar(places, medians, WIDTH * 0.92, color=COLOURS[variant], alpha=0.35, label=variant)
        for place, name in zip(places, names, strict=True):
            _points(axes, place, result.times(variant, name), COLOURS[variant])
    ticks = [f"{figure}\n{_ratio(result, name)}" for figure, name in zip(FIGURES, names, strict=True)]
    axes.set_xticks(range(len(names)), ticks, fontsize=9)
    axes.set_title(label, fontsize=11)
    axes.set_ylabel("ms")
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)


def _points(axes: Any, place: float, times: list[float], colour: str) -> None:
    """Rounds from left to right within the bar, so that a drift over the run shows."""
    step = WIDTH * 0.7 / max(len(times) - 1, 1)
    first = place - step * (len(times) - 1) / 2
    axes.plot([first + step * index for index in range(len(times))], times, "o", color=colour, markersize=3.5)


def _ratio(result: Result, metric: str) -> str:
    ratio = result.ratio(metric)
    return ratio_text(ratio).replace(" ", "\n") if ratio else ""


def _footer(result: Result) -> str:
    inactive = "" if result.active() else "SERVING_OPS WAS NOT ACTIVE. "
    return (
        f"{inactive}Bars: median of {rounds(result)}; points: the rounds, in order; "
        f"numbers: {OURS} / {BASELINE} with 95% interval.\n{load(result)}."
    )
