"""The options of `qk_norm_rope` as one text, for the operators that vLLM's layers call.

Each argument of an operator costs 0.3 us of host time, which eager mode waits for, and so does a prompt that is in no
graph.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

INTEGERS = ("num_q_heads", "num_kv_heads", "head_dim", "rotary_dim", "is_neox", "mrope_interleaved")
FLOATS = ("eps", "weight_offset")
"""What the text has, in order; `mrope_section` comes last, where it is given."""

MANTISSA_BITS = 53


def options_text(options: dict[str, Any]) -> str:
    """Return the operator's options as integers, which C++ reads fast: a float as a mantissa and a power of two."""
    integers = (int(options.get(name, 0)) for name in INTEGERS)
    floats = itertools.chain.from_iterable(_mantissa_and_power(options[name]) for name in FLOATS)
    return " ".join(map(str, (*integers, *floats, *(options.get("mrope_section") or ()))))


def _mantissa_and_power(value: float) -> tuple[int, int]:
    mantissa, power = math.frexp(value)
    return int(mantissa * 2**MANTISSA_BITS), power - MANTISSA_BITS


@functools.cache
def options_of(text: str) -> dict[str, Any]:
    """Return the options that have this text, without defaults of the rare ones: each costs host time."""
    values = iter(map(int, text.split()))
    integers = {name: next(values) for name in INTEGERS}
    flags = {name: bool(integers[name]) for name in ("is_neox", "mrope_interleaved")}
    floats = {name: math.ldexp(next(values), next(values)) for name in FLOATS}
    options, section = integers | flags | floats, tuple(values)
    if section:
        return options | {"mrope_section": section}
    del options["mrope_interleaved"]
    return options
