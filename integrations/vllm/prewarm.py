"""Prewarm inside vLLM: an operator that fails goes back to vLLM in this process."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

from serving_ops.integrations.common import prewarm
from serving_ops.integrations.common.prewarm import Outcome, after_failures
from serving_ops.integrations.vllm import features, layers, priority
from serving_ops.integrations.vllm.layers import NormLayer

__all__ = ["after_failures", "give_back", "run"]

_logger = logging.getLogger("vllm.serving_ops")


def run(found: Sequence[NormLayer]) -> Outcome:
    """Prewarm what the layers that are on may call; an operator that fails goes back to vLLM in this process."""
    outcome = prewarm.run(found, _logger)
    give_back(outcome.failed)
    return outcome


def give_back(ops: Iterable[str]) -> None:
    """Have vLLM's own code run in this process wherever it would call these operators."""
    from serving_ops.integrations.vllm.out_of_tree import classes_calling

    given_back = frozenset(ops)
    features.native_ops.update(given_back)
    for ours in (ours for op in given_back for ours in classes_calling(op)):
        ours.stay_native = True
    for op in sorted(given_back.intersection(layers.IR_OPS) if features.has_ir() else ()):
        priority.drop(op)
