"""The picture of a comparison: every pair a point, so that a difference smaller than the noise looks like one."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from serving_ops.bench_e2e import comparison
from serving_ops.bench_e2e.comparison import BASELINE, INACTIVE, OURS, VARIANTS, Comparison
from serving_ops.bench_e2e.environment import COMMAND
from serving_ops.bench_e2e.layer_plot import write_layers
from serving_ops.bench_e2e.result_file import circumstances

PANELS = {"TTFT": ("TTFT",), "TPOT": ("TPOT", "device time", "step")}
"""Title of a panel -> how the labels of its figures begin."""
COLOURS = {BASELINE: "#8a8f98", OURS: "#0a7f5a"}
SIZE_INCHES, DOTS_PER_INCH = (10.0, 5.0), 150
WIDTH = 0.36  # of a bar, in units of one figure's place


def main(argv: Sequence[str]) -> int:
    """Draws each result beside its file; `layer FILE... --out SVG` draws the kernels of a layer.

    Exit status 1, with a sentence, for a file that is no comparison, or that has no layer.
    """
    of_layer = [*argv[:1]] == ["layer"]
    parser = argparse.ArgumentParser(prog=f"{COMMAND} plot", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="JSON of serve, step or training-steps")
    parser.add_argument("--out", type=Path, required=of_layer, metavar="SVG", help="for `plot layer`")
    chosen = parser.parse_args(argv[1:] if of_layer else argv)
    try:
        results = {path: comparison.load(path) for path in chosen.files}
        if of_layer:
            write_layers(results, chosen.out)
            print(f"wrote {chosen.out}")
        else:
            for path, result in results.items():
                print(f"wrote {write_plot(result, path.with_suffix('.png'))}")
    except (OSError, ValueError) as error:
        parser.exit(1, f"{error}\n")
    return 0


def write_plot(result: Comparison, path: Path) -> Path:
    """Draw `result` as PNG. Needs no display."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE_INCHES, layout="constrained")
    figure.suptitle(f"{result.title}\n{circumstances(result.run)}", fontsize=11)
    panels = {name: [f for f, label in result.figures.items() if label.startswith(of)] for name, of in PANELS.items()}
    panels = {name: figures for name, figures in panels.items() if figures}
    for place, (name, figures) in enumerate(panels.items(), start=1):
        _panel(figure.add_subplot(1, len(panels), place), result, name, figures)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper right", frameon=False, fontsize=9)
    inactive = "" if result.active else f"{INACTIVE.upper()}. "
    footer = f"{inactive}Bars: medians; points: the pairs, in order; numbers: {OURS} / {BASELINE} with 95% interval."
    figure.supxlabel(footer, fontsize=8, color="#555555")
    figure.savefig(path, dpi=DOTS_PER_INCH)
    return path


def _panel(axes: Any, result: Comparison, name: str, figures: Sequence[str]) -> None:
    """The points of a bar go from left to right, so that a drift over the run shows."""
    for place, figure in enumerate(figures):
        for index, variant in enumerate(VARIANTS):
            left = place + (index - len(VARIANTS) / 2) * WIDTH
            look, times = {"color": COLOURS[variant]}, result.values(variant, figure)
            label = variant if not place else None
            axes.bar(left, median(times), WIDTH * 0.92, align="edge", alpha=0.35, label=label, **look)
            among = [left + WIDTH * (number + 0.5) / len(times) for number in range(len(times))]
            axes.plot(among, times, "o", markersize=3.5, **look)
    ratios = [str(result.ratio(figure) or "").replace(" ", "\n", 1) for figure in figures]
    labels = [result.figures[figure].removeprefix(f"{name} ") for figure in figures]
    axes.set_xticks(range(len(figures)), map("\n".join, zip(labels, ratios, strict=True)), fontsize=9)
    axes.set_title(name, fontsize=11)
    axes.set(ylabel="ms", ylim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)
