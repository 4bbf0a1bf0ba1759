from __future__ import annotations

import math

import pytest
import torch

from serving_ops.bench_e2e.accuracy.accuracy_bench import figures, ratio


def test_the_reference_has_no_divergence_from_itself_and_its_own_perplexity() -> None:
    logits = torch.tensor([0.5, 0.25, 0.125, 0.125]).log().repeat(600, 1)
    perplexity, divergences = figures(logits, logits, torch.tensor([0, 1, 2] * 200))
    assert perplexity == pytest.approx((2 * 4 * 8) ** (1 / 3))
    assert divergences.tolist() == [0.0] * 600


def test_the_divergence_is_of_the_engine_from_the_reference_and_not_the_reverse() -> None:
    reference, engine = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.75, 0.25]]).log()
    perplexity, divergences = figures(engine, reference, torch.tensor([0]))
    assert divergences.tolist() == pytest.approx([0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)])
    assert perplexity == pytest.approx(4 / 3)


def test_a_constant_added_to_a_positions_logits_changes_nothing() -> None:
    logits = torch.randn(5, 11, generator=torch.Generator().manual_seed(0))
    tokens = torch.tensor([0, 3, 10, 7, 7])
    perplexity, divergences = figures(logits + 8.0, logits, tokens)
    assert divergences.tolist() == pytest.approx([0.0] * 5, abs=1e-6)
    assert perplexity == pytest.approx(figures(logits, logits, tokens)[0])


def test_pairs_that_differ_by_a_factor_have_an_exact_ratio() -> None:
    engine = torch.rand(100, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.5
    assert ratio(engine * 1.25, engine) == pytest.approx((1.25, 1.25, 1.25))


def test_about_95_of_100_intervals_hold_the_true_ratio() -> None:
    generator = torch.Generator().manual_seed(0)
    held = 0
    for _ in range(400):
        engine = torch.rand(200, generator=generator, dtype=torch.float64) + 0.5
        ours = engine * (0.6 + torch.rand(200, generator=generator, dtype=torch.float64))
        _, low, high = ratio(ours, engine)
        held += low <= 1.1 <= high
    assert 0.92 < held / 400 < 0.98
