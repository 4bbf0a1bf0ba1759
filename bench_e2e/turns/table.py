"""The tables of engines in turns; in a summary, a line is a result and a column the ratio of a figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from serving_ops.bench_e2e.report import ratio_text, spread_text
from serving_ops.bench_e2e.result import BASELINE, OURS
from serving_ops.bench_e2e.table import rows
from serving_ops.bench_e2e.turns.load import labels
from serving_ops.bench_e2e.turns.result import RATIO_METHOD, TurnsResult, load_result

INVARIANT = {"VLLM_BATCH_INVARIANT=1": "VLLM_BATCH_INVARIANT=1", "enable_deterministic_inference": "deterministic"}
"""Settings of engines, as a command has them and as a title: they change what every figure is compared with."""


def render(path: Path) -> str:
    """A result file as Markdown."""
    return markdown(load_result(path))


def summarize(paths: Sequence[Path]) -> str:
    return summary([load_result(path) for path in paths])


def header(result: TurnsResult) -> tuple[str, ...]:
    return (
        "ms",
        BASELINE,
        OURS,
        f"{OURS} / {BASELINE}, 95% interval",
        *(f"{name} / {BASELINE}" for name in _more(result)),
    )


def _more(result: TurnsResult) -> list[str]:
    """Variants that the bench had once: engines whose norms do nothing, or are kernels that do nothing."""
    return [variant for variant in result.engines if variant not in (BASELINE, OURS)]


def lines(result: TurnsResult) -> list[tuple[str, ...]]:
    """One for each figure that was measured."""
    found = set(result.figures())
    return [_line(result, figure, label) for figure, label in labels(result.load).items() if figure in found]


def _line(result: TurnsResult, figure: str, label: str) -> tuple[str, ...]:
    spreads = [spread_text(result.spread(variant, figure)) for variant in (BASELINE, OURS)]
    return (label, *spreads, *(ratio_text(result.ratio(figure, variant)) for variant in (OURS, *_more(result))))


def markdown(result: TurnsResult) -> str:
    return f"{heading(result)}\n\n{rows([header(result), *lines(result)])}\n\n{note(result)} `{result.command}`"


def summary(results: Sequence[TurnsResult]) -> str:
    """A line a result, a column a figure: serving_ops over native."""
    columns = {name: label for result in results for name, label in labels(result.load).items()}
    columns = {name: label for name, label in columns.items() if any(name in result.figures() for result in results)}
    body = [(title(result), *(_ratio_cell(result, name) for name in columns)) for result in results]
    return rows([(f"{OURS} / {BASELINE}", *columns.values()), *body])


def _ratio_cell(result: TurnsResult, figure: str) -> str:
    return ratio_text(result.ratio(figure)) if figure in result.figures() else ""


def title(result: TurnsResult) -> str:
    settings = "".join(f", `{shown}`" for words, shown in INVARIANT.items() if words in result.command)
    mode = result.mode if result.engine == "vllm" or result.eager else "CUDA graphs"
    return f"{result.model}, {mode}{settings}"


def heading(result: TurnsResult) -> str:
    return f"**{title(result)}**: {result.circumstances}"


def note(result: TurnsResult) -> str:
    runs = result.engines[BASELINE]
    return (
        f"{len(runs)} engines of each variant, alive at once, in turns over {len(runs[0].rounds)} rounds: median over "
        f"engines of their medians over rounds [lowest-highest]. TPOT over {result.load.decode_steps} steps behind a "
        f"prompt of {result.load.decode_prompt_len} tokens. Ratio: {RATIO_METHOD}."
    )
