"""`python -m serving_ops.bench_e2e plot layer FILE... --out SVG`: what runs between the products of one layer.

Each result of `step` is two rows, the engine alone and with serving_ops. Kernels that are no product are drawn to
scale, products and attention as blocks of one width. The colours can be read on light and dark pages.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving_ops.bench_e2e import comparison, presets
from serving_ops.bench_e2e.comparison import BASELINE, OURS, Comparison
from serving_ops.bench_e2e.result_file import machine

ROLES = {
    "cache": r"reshape_and_cache|set_kv|store_kv|kv_?cache",
    "attention": r"flash|attention|attn|fmha|_fwd_(grouped_)?kernel|merge_state",
    "product": r"gemm|gemv|nvjet|cutlass|cublas|splitk|matmul|scaled_mm|::linear|::(add)?mm\b|onednn",
    "SiLU": r"silu|act_and_mul|gelu",
    "norm, rope": r"qk_norm_rope",
    "norm": r"norm|rsqrt|^triton_(red|per)_",
    "quant": r"quant",
    "rope": r"rope|rotary|_cat_",
    "copy": r"copy|clone|memcpy|memset|fill",
}
"""What a kernel does -> what its name has. The first that fits. A kernel of Inductor's is never one of the first three,
though its name may list operators around it; one that reduces, outside attention, is a norm."""
NEVER_INDUCTOR = ("cache", "attention", "product")
OUR_KERNEL = re.compile(r"(norm_(row|tile|wide)|gated|qk_norm_rope)(_quant)?_kernel|serving_ops::")

GREEN, GREY, TEXT = "#0a7f5a", "#6b7280", "#767c85"
WIDTH_INCHES, HEADER_INCHES, GROUP_INCHES = 8.0, 0.1, 1.5
BLOCK_WIDTH, LABEL_WIDTH, SUM_WIDTH = 0.06, 0.15, 0.09  # of the picture
BAR = 0.62  # height of a bar, of a row's
LEAST_NAMED, LEAST_LABELLED = 0.032, 0.018  # of the picture: narrower kernels have their us alone, or nothing


@dataclass(frozen=True)
class Part:
    """A kernel of the layer. role: a key of ROLES, or empty."""

    role: str
    us: float
    ours: bool

    @property
    def block(self) -> bool:
        return self.role in ("attention", "product")


def main(argv: Sequence[str]) -> int:
    """Exit status 1, with a sentence, for a file that is no result of `step`, or has no layer."""
    parser = argparse.ArgumentParser(prog="python -m serving_ops.bench_e2e plot layer", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="JSON of step")
    parser.add_argument("--out", type=Path, required=True, metavar="SVG")
    chosen = parser.parse_args(argv)
    try:
        write_layers([_with_layer(path) for path in chosen.files], chosen.out)
    except (OSError, ValueError) as error:
        parser.exit(1, f"{error}\n")
    print(f"wrote {chosen.out}")
    return 0


def parts_of(kernels: Sequence[dict[str, Any]]) -> list[Part]:
    """From the layer's first norm on: behind the product before the one whose result attention reads."""
    parts = [_part(kernel) for kernel in kernels]
    heads = [place for place, part in enumerate(parts) if part.block and not parts[place - 1].block]
    if not heads:
        return parts
    attention = next((number for number, head in enumerate(heads) if parts[head].role == "attention"), 0)
    start = heads[attention - 1]
    while not parts[start - 1].block:
        start -= 1
    return parts[start:] + parts[:start]


def between(parts: Sequence[Part]) -> float:
    """us of what is neither product nor attention."""
    return sum(part.us for part in parts if not part.block)


def _part(kernel: dict[str, Any]) -> Part:
    name = str(kernel["name"])
    inductor = name.startswith("triton_")
    fitting = (role for role, pattern in ROLES.items() if re.search(pattern, name, re.IGNORECASE))
    role = next((role for role in fitting if not (inductor and role in NEVER_INDUCTOR)), "")
    return Part(role, float(kernel["us"]), bool(OUR_KERNEL.search(name)))


def _with_layer(path: Path) -> Comparison:
    result = comparison.load(path)
    layers = result.run.get("layer", {})
    if not all(layers.get(variant, {}).get("kernels") for variant in (BASELINE, OURS)):
        raise ValueError(f"{path} says of no layer which kernels it runs: `step` of this version records them")
    return result


def write_layers(results: Sequence[Comparison], path: Path) -> None:
    """Draw them below each other, as SVG with the same bytes each time."""
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH_INCHES, HEADER_INCHES + GROUP_INCHES * len(results)))
    figure.patch.set_alpha(0)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, 1)
    axes.set_ylim(0.4 - 3 * len(results), 0.6)
    rows = {
        (place, variant): parts_of(result.run["layer"][variant]["kernels"])
        for place, result in enumerate(results)
        for variant in (BASELINE, OURS)
    }
    widest = max(between(parts) for parts in rows.values())
    blocks = max(len(_joined(parts)) for parts in rows.values())
    scale = (1 - LABEL_WIDTH - SUM_WIDTH - BLOCK_WIDTH * blocks) / widest
    for (place, variant), parts in rows.items():
        result, y = results[place], -3.0 * place - (1.0 if variant == BASELINE else 2.0)
        if variant == BASELINE:
            _words(axes, 0.005, y + 0.85, _heading(result), size=9.5, weight="bold")
        engine = {"vllm": "vLLM", "sglang": "SGLang"}[result.run["engine"]]
        _words(axes, 0.005, y, engine if variant == BASELINE else "with serving_ops", size=9)
        end = _row(axes, y, parts, scale)
        _words(axes, end + 0.012, y, f"{between(parts):.1f} us", size=10, weight="bold", colour=_colour(variant))
    note = "us of each kernel in a decode step; green: serving_ops. Products and attention are not to scale."
    _words(axes, 0.005, 0.3, f"Between the products of one layer: {note}", size=8)
    with matplotlib.rc_context({"svg.hashsalt": "serving_ops", "svg.fonttype": "none"}):
        figure.savefig(path, format="svg", transparent=True, metadata={"Date": None, "Creator": None})


def _colour(variant: str) -> str:
    return GREEN if variant == OURS else TEXT


def _heading(result: Comparison) -> str:
    engine, batch = result.run["engine"], result.run["layer"][BASELINE]["batch_size"]
    name = {"vllm": "vLLM", "sglang": "SGLang"}[engine]
    model = f"{presets.said(result.run['model'])}, {result.run['mode']}, batch {batch}"
    return f"{name} {result.run['versions'][engine]}, {model}: {machine(result.run)}, {result.run['date'][:10]}"


def _joined(parts: Sequence[Part]) -> list[list[Part]]:
    """Blocks that follow each other and do the same are one, as a product is with the sum of its parts."""
    joined: list[list[Part]] = []
    before = None
    for part in parts:
        if part.block and before is not None and before.role == part.role:
            joined[-1].append(part)
        elif part.block:
            joined.append([part])
        before = part
    return joined


def _row(axes: Any, y: float, parts: Sequence[Part], scale: float) -> float:
    """Where it ends."""
    from matplotlib.patches import Rectangle

    x, before = LABEL_WIDTH, None
    for part in parts:
        if part.block and before is not None and before.role == part.role:
            continue
        width = BLOCK_WIDTH if part.block else part.us * scale
        place, size = (x + 0.001, y - BAR / 2), (max(width - 0.002, 0.001), BAR)
        filled = GREEN if part.ours else GREY
        look = {"fill": False, "ec": TEXT, "lw": 0.6} if part.block else {"fc": filled, "lw": 0}
        axes.add_patch(Rectangle(place, *size, **look))
        if width >= LEAST_LABELLED:
            text = part.role if part.block else _text(part, named=width >= LEAST_NAMED)
            _words(axes, x + width / 2, y, text, size=7, align="center", colour=TEXT if part.block else "#ffffff")
        x, before = x + width, part
    return x


def _text(part: Part, named: bool) -> str:
    lines = part.role.split(", ") if named and part.role else []
    return "\n".join([*lines, f"{part.us:.1f}"])


def _words(
    axes: Any,
    x: float,
    y: float,
    text: str,
    *,
    size: float,
    align: str = "left",
    colour: str = TEXT,
    weight: str = "normal",
) -> None:
    axes.text(x, y, text, fontsize=size, ha=align, va="center", color=colour, weight=weight, linespacing=1.05)
