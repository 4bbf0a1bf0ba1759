"""`python -m serving_ops.bench_e2e plot layer FILE... --out SVG`: what runs between the products of one layer.

Each result of `step` is two rows, the engine alone and with serving_ops. Colours suit light and dark pages.
"""

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from serving_ops.bench_e2e import presets
from serving_ops.bench_e2e.comparison import BASELINE, OURS, Comparison
from serving_ops.bench_e2e.environment import TITLES
from serving_ops.bench_e2e.result_file import machine

ROLES = {
    "cache": r"reshape_and_cache|set_kv|store_kv|kv_?cache",
    "attention": r"flash|attention|attn|fmha|_fwd_(grouped_)?kernel|merge_state",
    "product": r"gemm(?!::scale_)|gemv|nvjet|cutlass|cublas|splitk|matmul|scaled_mm|::linear|::(add)?mm\b|onednn",
    "SiLU": r"silu|act_and_mul|gelu",
    "norm, rope": r"qk_norm_rope",
    "norm": r"norm|rsqrt|^triton_(red|per)_",
    "quant": r"quant|gemm::scale_",
    "rope": r"rope|rotary|_cat_",
    "copy": r"copy|clone|memcpy|memset|fill",
}
"""What a kernel does -> what its name has. The first that fits. A kernel of Inductor's is never one of the first three,
though its name may list operators around it; one that reduces, outside attention, is a norm."""
NEVER_INDUCTOR = ("cache", "attention", "product")
OUR_KERNEL = re.compile(r"(norm_(row|rows|pair|tile|wide)|gated|qk_norm_rope)(_quant)?_kernel|serving_ops::")

GREEN, GREY, TEXT = "#0a7f5a", "#6b7280", "#767c85"
WIDTH_INCHES, HEADER_INCHES, GROUP_INCHES = 8.0, 0.1, 1.5
BLOCK_WIDTH, LABEL_WIDTH, SUM_WIDTH = 0.06, 0.15, 0.09  # of the picture
BAR = 0.62  # height of a bar, of a row's
LEAST_NAMED, LEAST_LABELLED = 0.032, 0.018  # of the picture: narrower kernels have their us alone, or nothing


class Part(NamedTuple):
    """A kernel of the layer, or a block of several. role: a key of ROLES, or empty."""

    role: str
    us: float
    ours: bool

    @property
    def block(self) -> bool:
        return self.role in ("attention", "product")


def parts_of(kernels: Sequence[dict[str, Any]]) -> list[Part]:
    """From the layer's first norm on: after the product before the one whose result attention reads.

    A product is one block with the sum of its parts after it.
    """
    parts = [_part(kernel["name"], kernel["us"]) for kernel in kernels]
    parts = [part for place, part in enumerate(parts) if not (part.block and parts[place - 1].role == part.role)]
    blocks = [place for place, part in enumerate(parts) if part.block]
    if not blocks:
        return parts
    attention = next((number for number, place in enumerate(blocks) if parts[place].role == "attention"), 0)
    start = blocks[(attention - 2) % len(blocks)] + 1
    return parts[start:] + parts[:start]


def between(parts: Sequence[Part]) -> float:
    """us of what is neither product nor attention."""
    return sum(part.us for part in parts if not part.block)


def _part(name: str, us: float) -> Part:
    roles = [role for role in ROLES if not (name.startswith("triton_") and role in NEVER_INDUCTOR)]
    role = next((role for role in roles if re.search(ROLES[role], name, re.IGNORECASE)), "")
    return Part(role, us, bool(OUR_KERNEL.search(name)))


def write_layers(results: dict[Path, Comparison], out: Path) -> None:
    """Draw them below each other, as SVG with the same bytes each time. Raises ValueError for one without a layer."""
    import matplotlib
    from matplotlib.figure import Figure

    rows: list[tuple[str, str, list[Part]]] = []  # a heading where one stands above, a label, and what is drawn
    for path, result in results.items():
        run, engine, layer = result.run, TITLES[result.run["engine"]], result.run.get("layer", {})
        if not all(layer.get(variant, {}).get("kernels") for variant in (BASELINE, OURS)):
            raise ValueError(f"{path} says of no layer which kernels it runs: `step` of this version records them")
        native, ours = (parts_of(layer[variant]["kernels"]) for variant in (BASELINE, OURS))
        heading = (
            f"{engine} {run['versions'][run['engine']]}, {presets.said(run['model'])}, {run['mode']}, "
            f"batch {layer[BASELINE]['batch_size']}: {machine(run)}, {run['date'][:10]}"
        )
        rows += [(heading, engine, native), ("", "with serving_ops", ours)]
    figure = Figure(figsize=(WIDTH_INCHES, HEADER_INCHES + GROUP_INCHES * len(results)))
    figure.patch.set_alpha(0)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, 1), ylim=(0.4 - 3 * len(results), 0.6))
    axes.set_axis_off()
    write = partial(axes.text, va="center", color=TEXT, linespacing=1.05)
    most_blocks = max(sum(part.block for part in parts) for _, _, parts in rows)
    room = 1 - LABEL_WIDTH - SUM_WIDTH - BLOCK_WIDTH * most_blocks
    scale = room / max(between(parts) for _, _, parts in rows)
    y = 0.0
    for heading, label, parts in rows:
        if heading:
            write(0.005, y - 0.15, heading, fontsize=9.5, weight="bold")
            y -= 1.0
        write(0.005, y, label, fontsize=9)
        end, colour = _draw_row(axes, write, y, parts, scale), TEXT if heading else GREEN
        write(end + 0.012, y, f"{between(parts):.1f} us", fontsize=10, weight="bold", color=colour)
        y -= 1.0
    note = "us of each kernel in a decode step; green: serving_ops. Products and attention are not to scale."
    write(0.005, 0.3, f"Between the products of one layer: {note}", fontsize=8)
    with matplotlib.rc_context({"svg.hashsalt": "serving_ops", "svg.fonttype": "none"}):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})


def _draw_row(axes: Any, write: Any, y: float, parts: Sequence[Part], scale: float) -> float:
    x = LABEL_WIDTH
    for part in parts:
        width = BLOCK_WIDTH if part.block else part.us * scale
        look: dict[str, Any] = {"color": GREEN if part.ours else GREY, "lw": 0}
        if part.block:
            look = {"fill": False, "ec": TEXT, "lw": 0.6}
        axes.barh(y, max(width - 0.002, 0.001), BAR, left=x + 0.001, **look)
        named = part.role.split(", ") if width >= LEAST_NAMED and part.role else []
        text = part.role if part.block else "\n".join([*named, f"{part.us:.1f}"])
        if width >= LEAST_LABELLED:
            write(x + width / 2, y, text, fontsize=7, ha="center", color=TEXT if part.block else "#ffffff")
        x += width
    return x
