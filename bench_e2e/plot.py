"""The picture of a comparison: every pair a point, so that a difference smaller than the noise looks like one."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from serving_ops.bench_e2e import comparison
from serving_ops.bench_e2e.comparison import BASELINE, INACTIVE, OURS, Comparison

PANELS = {"TTFT": ("TTFT",), "TPOT": ("TPOT", "device time", "step")}
"""Title of a panel -> how the labels of its figures begin."""
COLOURS = {BASELINE: "#8a8f98", OURS: "#0a7f5a"}
SIZE_INCHES, DOTS_PER_INCH = (10.0, 5.0), 150
WIDTH = 0.36  # of a bar, in units of one figure's place


def main(argv: Sequence[str]) -> int:
    """Draws each result beside its file; `layer FILE... --out SVG` draws the kernels of a layer."""
    if argv and argv[0] == "layer":
        from serving_ops.bench_e2e import layer_plot

        return layer_plot.main(argv[1:])
    parser = argparse.ArgumentParser(prog="python -m serving_ops.bench_e2e plot", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="JSON of serve, step or training-steps")
    for path in parser.parse_args(argv).files:
        try:
            print(f"wrote {write_plot(comparison.load(path), path.with_suffix('.png'))}")
        except (OSError, ValueError) as error:
            parser.exit(1, f"{error}\n")
    return 0


def write_plot(result: Comparison, path: Path) -> Path:
    """Draw `result` as PNG. Needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE_INCHES, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{result.title}\n{result.circumstances}", fontsize=11)
    panels = {name: [f for f, label in result.figures.items() if label.startswith(of)] for name, of in PANELS.items()}
    panels = {name: figures for name, figures in panels.items() if figures}
    for place, (name, figures) in enumerate(panels.items(), start=1):
        _panel(figure.add_subplot(1, len(panels), place), result, name, figures)
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper right", frameon=False, fontsize=9)
    inactive = "" if result.active else f"{INACTIVE.upper()}. "
    footer = f"{inactive}Bars: medians; points: the pairs, in order; numbers: {OURS} / {BASELINE} with 95% interval."
    figure.supxlabel(footer, fontsize=8, color="#555555")
    figure.savefig(path, dpi=DOTS_PER_INCH)
    return path


def _panel(axes: Any, result: Comparison, name: str, figures: Sequence[str]) -> None:
    variants = [variant for variant in result.pairs if variant in COLOURS]
    for index, variant in enumerate(variants):
        centre = (index - (len(variants) - 1) / 2) * WIDTH
        places = [place + centre for place in range(len(figures))]
        medians = [result.spread(variant, figure).median for figure in figures]
        axes.bar(places, medians, WIDTH * 0.92, color=COLOURS[variant], alpha=0.35, label=variant)
        for place, figure in zip(places, figures, strict=True):
            _points(axes, place, result.values(variant, figure), COLOURS[variant])
    ticks = [f"{result.figures[figure].removeprefix(f'{name} ')}\n{_ratio(result, figure)}" for figure in figures]
    axes.set_xticks(range(len(figures)), ticks, fontsize=9)
    axes.set_title(name, fontsize=11)
    axes.set_ylabel("ms")
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)


def _points(axes: Any, place: float, times: list[float], colour: str) -> None:
    """Pairs from left to right within the bar, so that a drift over the run shows."""
    step = WIDTH * 0.7 / max(len(times) - 1, 1)
    first = place - step * (len(times) - 1) / 2
    axes.plot([first + step * index for index in range(len(times))], times, "o", color=colour, markersize=3.5)


def _ratio(result: Comparison, figure: str) -> str:
    ratio = result.ratio(figure)
    return str(ratio).replace(" ", "\n", 1) if ratio else ""
