"""How far an engine's logits are from the same model's in fp32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

ROWS_AT_ONCE = 256  # bounds the memory: a row has as many values as the vocabulary


@dataclass(frozen=True)
class Figures:
    """Of one run, over the positions of the text; `divergences` is what the mean is of."""

    perplexity: float
    divergences: Tensor  # (positions,) nats: the Kullback-Leibler divergence of the engine from the reference
    same_top: float  # share of positions whose likeliest token is the reference's

    @property
    def divergence(self) -> float:
        return float(self.divergences.mean())


def figures(logits: Tensor, reference: Tensor, tokens: Tensor) -> Figures:
    """logits, reference: (positions, vocabulary) in any floating dtype; tokens: (positions,), the text's next ones."""
    import torch

    divergences, surprise, same = [], 0.0, 0
    for first in range(0, len(tokens), ROWS_AT_ONCE):
        rows = slice(first, first + ROWS_AT_ONCE)
        ours, exact = logits[rows].double().log_softmax(-1), reference[rows].double().log_softmax(-1)
        divergences.append((exact.exp() * (exact - ours)).sum(-1))
        surprise -= float(ours.gather(-1, tokens[rows, None]).sum())
        same += int((ours.argmax(-1) == exact.argmax(-1)).sum())
    perplexity = float(torch.tensor(surprise / len(tokens), dtype=torch.float64).exp())
    return Figures(perplexity, torch.cat(divergences), same / len(tokens))


def ratio(ours: Figures, engine: Figures) -> tuple[float, float, float]:
    """Our mean divergence over the engine's, with its 95% interval. Both have the same positions, in pairs."""
    import torch

    quotient = ours.divergence / engine.divergence
    # The delta method: the quotient of two means varies as the mean of these residuals does.
    residuals = (ours.divergences - quotient * engine.divergences) / engine.divergence
    margin = 1.96 * float(residuals.std() / torch.tensor(len(residuals)).sqrt())
    return quotient, quotient - margin, quotient + margin
