"""`qk_norm_rope` with its options as one text: operators for engines' layers, without a KV cache and with one.

Each argument of an operator costs 0.3 us of host time, which eager mode waits for, and so does a prompt that is in no
graph.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import torch
from torch import Tensor

from serving_ops import schemas

OP, CACHED = "qk_norm_rope_short", "qk_norm_rope_short_cached"
_FIRST = "Tensor(a!) qkv, Tensor positions, Tensor cos_sin_cache, Tensor q_weight, Tensor k_weight, str options"
_OF_CACHE = "Tensor(b!)? k, Tensor? v, Tensor(c!) key_cache, Tensor(d!) value_cache, Tensor slot_mapping"
ARGUMENTS = {OP: _FIRST, CACHED: f"{_FIRST}, {_OF_CACHE}"}
"""The operators' arguments, which are those of `serving_ops.qk_norm_rope`. C++ reads them by their places."""

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


@functools.cache
def define() -> None:
    """Define the operators, once per process: graphs from vLLM's cache call them by their names."""
    for name, arguments in ARGUMENTS.items():
        schemas.define(f"{name}({arguments}) -> ()", _by_name, lambda *_: None)
        schemas.define_fallback(name, arguments, _by_name)


def _by_name(
    qkv: Tensor,
    positions: Tensor,
    table: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    options: str,
    k: Tensor | None = None,
    v: Tensor | None = None,
    key_cache: Tensor | None = None,
    value_cache: Tensor | None = None,
    slot_mapping: Tensor | None = None,
) -> None:
    """What C++ does not take goes to the operator of all calls."""
    torch.ops.serving_ops.qk_norm_rope.default(
        *(qkv, positions, table, q_weight, k_weight),
        **options_of(options),
        k=k,
        v=v,
        key_cache=key_cache,
        value_cache=value_cache,
        slot_mapping=slot_mapping,
    )
