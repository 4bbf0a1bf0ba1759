"""The start-up line: what is on, for how many layers, and what stays the engine's, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import serving_ops
from serving_ops import settings


def describe(found: Sequence[Any], device: str, prewarmed: str) -> str:
    """The start-up line."""
    total = Counter(layer.kind for layer in found)
    on = Counter(layer.kind for layer in found if layer.native_because is None)
    native = Counter((layer.kind, layer.native_because) for layer in found if layer.native_because is not None)
    head = f"serving_ops {serving_ops.__version__} ({settings.choice()}, {device})"
    parts = ["on for " + ", ".join(f"{on[kind]} of {total[kind]} {kind}" for kind in on)] if on else ["on for no layer"]
    if native:
        parts.append("native: " + ", ".join(f"{count} {kind} ({why})" for (kind, why), count in native.items()))
    return f"{head}: " + "; ".join([*parts, prewarmed])
