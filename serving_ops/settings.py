"""What a user sets in the environment. Every variable starts with `SERVING_OPS`; the README lists them."""

from __future__ import annotations

import os
from typing import Literal, cast

Mode = Literal["off", "auto", "strict"]
MODES = ("off", "auto", "strict")
OPS = ("fused_add_rms_norm", "rms_norm", "rms_norm_gated")


def _words() -> list[str]:
    """Of `SERVING_OPS`. Raises ValueError for an unknown one, and for two modes."""
    value = os.environ.get("SERVING_OPS", "")
    words = [word.strip().lower() for word in value.split(",") if word.strip()]
    if set(words) - {*MODES, *OPS}:
        raise ValueError(f"SERVING_OPS={value!r} is not known: allowed are {', '.join(MODES)}, and {', '.join(OPS)}")
    if sum(word in MODES for word in words) > 1:
        raise ValueError(f"SERVING_OPS={value!r} names two modes: allowed is one of {', '.join(MODES)}")
    return words


def mode() -> Mode:
    """What the engine plugins do, from `SERVING_OPS`: a mode, names of ops, or both, separated by commas.

    `off` (the default): nothing. `auto`: take what gains, stay native where anything is in the way.
    `strict`: the same, but a failure or a fallback stops start-up. Names of ops alone mean `auto`.

    Raises ValueError for any other value.
    """
    words = _words()
    return cast(Mode, next((word for word in words if word in MODES), "auto" if words else "off"))


def ops() -> frozenset[str]:
    """The ops that the engine plugins may take: those that `SERVING_OPS` names, or all. Raises as `mode`."""
    return frozenset(word for word in _words() if word in OPS) or frozenset(OPS)


def names_ops() -> bool:
    """Whether `SERVING_OPS` names ops at all. Raises as `mode`."""
    return any(word in OPS for word in _words())


def choice() -> str:
    """Mode and ops, for a person: `auto`, or `auto for rms_norm alone`. Raises as `mode`."""
    chosen = [op for op in OPS if op in ops()]
    return mode() if len(chosen) == len(OPS) else f"{mode()} for {', '.join(chosen)} alone"


def prewarm_enabled() -> bool:
    """Whether engines prewarm the kernels at start-up: yes, unless `SERVING_OPS_PREWARM=0`."""
    return os.environ.get("SERVING_OPS_PREWARM", "1").strip() != "0"


def pdl_enabled() -> bool:
    """Whether kernels use programmatic dependent launch where the device has it: `SERVING_OPS_PDL=0` turns it off."""
    return os.environ.get("SERVING_OPS_PDL", "1").strip() != "0"
