"""What a user sets in the environment. Every variable starts with `SERVING_OPS`; the README lists them."""

from __future__ import annotations

import os
from typing import Literal, cast

Mode = Literal["off", "auto", "strict"]
MODES = ("off", "auto", "strict")


def mode() -> Mode:
    """What the engine plugins do, from `SERVING_OPS`.

    `off` (the default): nothing. `auto`: take what gains, stay native where anything is in the way.
    `strict`: the same, but a failure or a fallback stops start-up.

    Raises ValueError for any other value.
    """
    value = os.environ.get("SERVING_OPS", "off").strip().lower() or "off"
    if value not in MODES:
        raise ValueError(f"SERVING_OPS={value!r} is not known: allowed are {', '.join(MODES)}")
    return cast(Mode, value)


def prewarm_enabled() -> bool:
    """Whether engines prewarm the kernels at start-up: yes, unless `SERVING_OPS_PREWARM=0`."""
    return os.environ.get("SERVING_OPS_PREWARM", "1").strip() != "0"


def pdl_enabled() -> bool:
    """Whether kernels use programmatic dependent launch where the device has it: `SERVING_OPS_PDL=0` turns it off."""
    return os.environ.get("SERVING_OPS_PDL", "1").strip() != "0"
