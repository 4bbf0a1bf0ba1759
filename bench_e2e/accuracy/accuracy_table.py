"""Results of `accuracy` as Markdown."""

from __future__ import annotations

from typing import Any

HEADER = ("weights, mode", "perplexity", "with serving_ops", "KL from fp32", "with serving_ops", "ratio of KL [95%]")


def markdown(result: dict[str, Any]) -> str:
    lines = [HEADER, ("---", *["---:"] * (len(HEADER) - 1)), *map(_line, result["rows"])]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _line(row: dict[str, Any]) -> tuple[str, ...]:
    perplexity, divergence = row["perplexity"].values(), row["divergence"].values()
    middle, low, high = row["divergence_ratio"]
    return (
        f"{row['quantization'] or 'bf16'}, {row['mode']}",
        *(f"{value:.3f}" for value in perplexity),
        *(f"{value:.3g}" for value in divergence),
        f"{middle:.3f} [{low:.3f}, {high:.3f}]" if row["active"] else "vLLM's norms run",
    )
