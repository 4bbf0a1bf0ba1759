"""The norm layers of a loaded model: their kernels, compiled before the first request, and the start-up line."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import serving_ops
from serving_ops import NormSpec, settings

NO_ADAPTER = "no adapter yet"
LEFT_OUT = "left out by SERVING_OPS"


@dataclass(frozen=True)
class NormLayer:
    """One layer: its name in the line, the norms that it may call, and why the engine keeps it, or None."""

    kind: str
    specs: tuple[NormSpec, ...]
    native_because: str | None


Layer = TypeVar("Layer", bound=NormLayer)


@dataclass(frozen=True)
class Outcome:
    """The result of a prewarm: a phrase for the start-up line, and the reason for each operator that failed."""

    summary: str
    failed: dict[str, str] = field(default_factory=dict)


def prewarm_layers(found: Sequence[NormLayer], logger: logging.Logger) -> Outcome:
    """Prewarm the norms of all layers that are on. Logs each failure."""
    specs = list(dict.fromkeys(spec for layer in found if layer.native_because is None for spec in layer.specs))
    if not specs or not settings.prewarm_enabled():
        return Outcome("nothing to prewarm" if settings.prewarm_enabled() else "prewarm off")
    start = time.perf_counter()
    failed = prewarm(specs, logger)
    return Outcome(f"prewarmed {len(specs)} norms in {time.perf_counter() - start:.1f} s", failed)


def prewarm(specs: Sequence[NormSpec], logger: logging.Logger) -> dict[str, str]:
    """Prewarm norms, unless the user switched that off; logs and returns the reason for each operator that failed."""
    if not settings.prewarm_enabled():
        return {}
    try:
        failed = {spec.op: reason for spec, reason in serving_ops.prewarm(specs).failed.items()}
    except Exception as error:  # prewarm itself failed, so no kernel can be trusted to compile later
        failed = {spec.op: str(error) for spec in specs}
    for op, reason in failed.items():
        logger.warning("serving_ops: the prewarm of %s failed, it stays native: %s", op, reason)
    return failed


def after_failures(layer: Layer, outcome: Outcome) -> Layer:
    """Return the layer as one that the engine keeps, if it calls an operator whose prewarm failed."""
    for spec in layer.specs:
        if layer.native_because is None and spec.op in outcome.failed:
            return dataclasses.replace(layer, native_because=f"the prewarm of {spec.op} failed")
    return layer


def describe(found: Sequence[NormLayer], device: str, *more: str) -> str:
    """The start-up line: what is on, for how many layers, what stays the engine's and why, and these phrases."""
    total = Counter(layer.kind for layer in found)
    on = Counter(layer.kind for layer in found if layer.native_because is None)
    native = Counter((layer.kind, layer.native_because) for layer in found if layer.native_because is not None)
    head = f"serving_ops {serving_ops.__version__} ({settings.choice()}, {device})"
    parts = ["on for " + ", ".join(f"{on[kind]} of {total[kind]} {kind}" for kind in on)] if on else ["on for no layer"]
    if native:
        parts.append("native: " + ", ".join(f"{count} {kind} ({why})" for (kind, why), count in native.items()))
    return f"{head}: " + "; ".join([*parts, *more])
