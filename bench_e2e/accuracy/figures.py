"""How far an engine's logits are from the same model's in fp32."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

ROWS_AT_ONCE = 256  # bounds the memory: a row has as many values as the vocabulary


def figures(logits: Tensor, reference: Tensor, tokens: Tensor) -> tuple[float, Tensor]:
    """The perplexity, and of each position the Kullback-Leibler divergence of the engine from the reference, in nats.

    logits, reference: (positions, vocabulary) in any floating dtype; tokens: (positions,), the text's next ones.
    """
    import torch
    from torch.nn import functional

    divergences, surprise = [], torch.zeros((), dtype=torch.float64)
    for *rows, following in zip(*(tensor.split(ROWS_AT_ONCE) for tensor in (logits, reference, tokens)), strict=True):
        ours, exact = (part.double().log_softmax(-1) for part in rows)
        divergences.append(functional.kl_div(ours, exact, reduction="none", log_target=True).sum(-1))
        surprise += functional.nll_loss(ours, following, reduction="sum")
    return float((surprise / len(tokens)).exp()), torch.cat(divergences)


def ratio(ours: Tensor, engine: Tensor) -> tuple[float, float, float]:
    """Our mean divergence over the engine's, with its 95% interval. Both have the same positions, in pairs."""
    quotient = float(ours.mean() / engine.mean())
    # The delta method: the quotient of two means varies as the mean of these residuals does.
    residuals = (ours - quotient * engine) / engine.mean()
    margin = 1.96 * float(residuals.std()) / len(residuals) ** 0.5
    return quotient, quotient - margin, quotient + margin
