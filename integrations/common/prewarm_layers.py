"""Compile or load the kernels of a loaded model's norms before its first request."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import serving_ops
from serving_ops import NormSpec, settings

Layer = TypeVar("Layer", bound=Any)
"""An engine's record of a layer. `specs`: the norms that it may call; `native_because`: why the engine keeps it."""


@dataclass(frozen=True)
class Outcome:
    """The result of a prewarm: a phrase for the start-up line, and the reason for each operator that failed."""

    summary: str
    failed: dict[str, str] = field(default_factory=dict)


def prewarm_layers(found: Sequence[Any], logger: logging.Logger) -> Outcome:
    """Prewarm the norms of all layers that are on. Logs each failure."""
    if not settings.prewarm_enabled():
        return Outcome("prewarm off")
    specs = list(dict.fromkeys(spec for layer in found if layer.native_because is None for spec in layer.specs))
    if not specs:
        return Outcome("nothing to prewarm")
    start = time.perf_counter()
    failed = _prewarm(specs)
    for op, reason in failed.items():
        logger.warning("serving_ops: the prewarm of %s failed, it stays native: %s", op, reason)
    return Outcome(f"prewarmed {len(specs)} norms in {time.perf_counter() - start:.1f} s", failed)


def _prewarm(specs: Sequence[NormSpec]) -> dict[str, str]:
    try:
        report = serving_ops.prewarm(specs)
    except Exception as error:  # prewarm itself failed, so no kernel can be trusted to compile later
        return {spec.op: str(error) for spec in specs}
    return {spec.op: reason for spec, reason in report.failed.items()}


def after_failures(layer: Layer, outcome: Outcome) -> Layer:
    """Return the layer as one that the engine keeps, if it calls an operator whose prewarm failed."""
    for spec in layer.specs:
        if layer.native_because is None and spec.op in outcome.failed:
            return dataclasses.replace(layer, native_because=f"the prewarm of {spec.op} failed")
    return layer
