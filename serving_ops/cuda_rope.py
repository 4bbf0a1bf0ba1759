"""`qk_norm_rope` on CUDA: from a checked call to a Triton launch, or to the reason why there is none."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from serving_ops import checks, counters, plan, rope_reference, support
from serving_ops.cuda import pdl
from serving_ops.cuda_quant import NO_FP8, converts_to_fp8
from serving_ops.plan import Plan
from serving_ops.plan_rope import MAX_SIZE, plan_rope

TOO_LARGE = f"heads of more than {MAX_SIZE} elements"
NOTHING_ROTATED = "a rotation of no elements"
TWO_WEIGHT_DTYPES = "q_weight and k_weight of two dtypes"
TWO_LAYOUTS = "key_cache and value_cache in different strides"
TOO_MANY_SLOTS = "more slots than the kernels count"
MAX_SLOTS = 2**31 - 1


class Heads(NamedTuple):
    """(num_tokens, heads, head_dim) each; v only where it is cached."""

    q: Tensor
    k: Tensor
    v: Tensor | None


@dataclass(frozen=True)
class Known:
    """A layout whose calls were checked and launched.

    launch: the same launch at other addresses, those of the kernel's pointers.
    extents: of each of `TENSORS`, bytes from its first element to the end of its last.
    apart_at: pairs that were found apart though they lie within each other, and their distance.
    """

    launch: Callable[[Iterable[int]], None]
    extents: tuple[int, ...]
    apart_at: set[tuple[int, int, int]] = field(default_factory=set)


TENSORS = (
    *("qkv", "k", "key_cache", "value_cache", "v", "positions", "cos_sin_cache", "q_weight", "k_weight"),
    *("slot_mapping", "k_scale", "v_scale"),
)
NUM_WRITTEN = 4
"""Of `TENSORS`, the first."""

MOST_KNOWN = 1024
"""Layouts: a model has one or two for each count of tokens that it has seen."""

_known: dict[Hashable, Known] = {}

_of_layers: dict[Hashable, Known] = {}
"""The same by the shorter keys of `of_layer`."""


def repeat(call: dict[str, Any]) -> bool:
    """Run a call of a layout that was checked and launched before; whether it did.

    What is left to check is whether tensors overlap. The layers of a model make the same call at other addresses, and a
    prompt beyond an engine's captured sizes waits for the host time of each.
    """
    tensors = [call[name] for name in TENSORS]
    addresses = [0 if tensor is None else tensor.data_ptr() for tensor in tensors]
    known = _known.get(_layout(call, tensors, addresses))
    if known is None or torch._C._cuda_getDevice() != tensors[0].get_device():
        return False
    if not known.apart_at.issuperset(_close(addresses, known.extents)):
        return False
    known.launch(_pointers(call, addresses))
    return True


def of_layer(qkv: Tensor, positions: Tensor, table: Tensor, q_weight: Tensor, k_weight: Tensor, options: str) -> None:
    """`qk_norm_rope` for a layer that keeps its options: what this adds to the operator is a shorter way to repeat.

    options: the operator's keyword arguments as JSON, without tensors. The operator has 21 arguments, and each of them
    costs host time.
    """
    tensors = (qkv, positions, table, q_weight, k_weight)
    q, *others = (tensor.data_ptr() for tensor in tensors)
    addresses = [q, 0, 0, 0, 0, *others, 0, 0, 0]  # as `TENSORS`, most of which are absent
    key = (options, qkv.get_device(), *((t.shape, t.stride(), t.dtype) for t in tensors), *(a % 16 for a in addresses))
    known = _of_layers.get(key)
    given = _options(options)
    if (
        known is not None
        and torch._C._cuda_getDevice() == qkv.get_device()
        and not any(_close(addresses, known.extents))
    ):
        known.launch(_pointers({"qkv": qkv, **given}, addresses))
        counters.count_kernel("qk_norm_rope")
        return
    torch.ops.serving_ops.qk_norm_rope(*tensors, **given)
    _remember_layer(key, tensors, given)


@cache
def _options(text: str) -> dict[str, Any]:
    options: dict[str, Any] = json.loads(text)
    return options


def _remember_layer(key: Hashable, tensors: tuple[Tensor, ...], given: dict[str, Any]) -> None:
    from serving_ops.ops import registry  # which imports this file

    call = registry.find("qk_norm_rope").bind(tensors, given)
    called = [call[name] for name in TENSORS]
    known = _known.get(_layout(call, called, [0 if tensor is None else tensor.data_ptr() for tensor in called]))
    if len(_of_layers) == MOST_KNOWN:
        _of_layers.clear()
    if known is not None:
        _of_layers[key] = known


def _layout(call: dict[str, Any], tensors: list[Tensor | None], addresses: list[int]) -> Hashable:
    """All that two calls share which differ in addresses alone."""
    numbers = (tuple(v) if isinstance(v, list) else v for name, v in call.items() if name not in TENSORS)
    layouts = (
        tensor if tensor is None else (tensor.shape, tensor.stride(), tensor.dtype, tensor.get_device(), address % 16)
        for tensor, address in zip(tensors, addresses, strict=True)
    )
    return (*numbers, *layouts)


def _close(addresses: list[int], extents: tuple[int, ...]) -> Iterator[tuple[int, int, int]]:
    """Pairs, one of them written, where one starts before the other ends; and their distance."""
    for i in range(NUM_WRITTEN):
        for j in range(i + 1, len(addresses)):
            distance = addresses[j] - addresses[i]
            if -extents[j] < distance < extents[i] and extents[i] and extents[j]:
                yield i, j, distance


def _pointers(call: dict[str, Any], addresses: list[int]) -> list[int]:
    """The addresses of what `run_qk_norm_rope` passes to its kernel, in order."""
    q, k, keys, values, v, positions, table, q_weight, k_weight, slots, k_scale, v_scale = addresses
    if not k:
        head = call["head_dim"] * call["qkv"].itemsize
        k = q + call["num_q_heads"] * head
        v = k + call["num_kv_heads"] * head
    return [
        *(q, k, v if keys else q, positions, table, q_weight or q, k_weight or q),
        *(keys or q, values or q, slots or positions, k_scale or q, v_scale or q),
    ]


def _remember(call: dict[str, Any], launch: Callable[[Iterable[int]], None]) -> None:
    tensors = [call[name] for name in TENSORS]
    addresses = [0 if tensor is None else tensor.data_ptr() for tensor in tensors]
    if len(_known) == MOST_KNOWN:
        _known.clear()
    extents = tuple(0 if tensor is None else checks.extent(tensor) for tensor in tensors)
    known = _known.setdefault(_layout(call, tensors, addresses), Known(launch, extents))
    known.apart_at.update(_close(addresses, extents))


def rope_route(
    qkv: Tensor,
    positions: Tensor,
    cos_sin_cache: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    num_q_heads: int,
    num_kv_heads: int,
    head_dim: int,
    k: Tensor | None,
    v: Tensor | None,
    key_cache: Tensor | None,
    value_cache: Tensor | None,
    **_: Any,
) -> tuple[Heads, Plan] | str:
    """The heads and the plan that run this call, or why the reference does."""
    heads = Heads(*rope_reference.heads_of(qkv, k, v, num_q_heads, num_kv_heads, head_dim))
    if key_cache is None:
        heads = heads._replace(v=None)
    named = (("qkv", heads.q), ("k", heads.k), ("v", heads.v), ("q_weight", q_weight), ("k_weight", k_weight))
    reason = support.no_triton() or support.why_not_layout(*named, ("cos_sin_cache", cos_sin_cache))
    reason = reason or _why_not(heads.q, cos_sin_cache, q_weight, k_weight)
    if key_cache is not None and value_cache is not None:
        reason = reason or _why_not_caches(key_cache, value_cache)
    cached = key_cache is not None
    return reason or (heads, plan_rope(head_dim, qkv.shape[0], num_q_heads + num_kv_heads, cached=cached))


def _why_not(q: Tensor, table: Tensor, q_weight: Tensor | None, k_weight: Tensor | None) -> str | None:
    if q.shape[2] > MAX_SIZE:
        return TOO_LARGE
    if table.shape[1] == 0:
        return NOTHING_ROTATED
    if q_weight is not None and k_weight is not None and q_weight.dtype != k_weight.dtype:
        return TWO_WEIGHT_DTYPES
    return support.TOO_MANY_ROWS if q.shape[0] > plan.MAX_ROWS else None


def _why_not_caches(keys: Tensor, values: Tensor) -> str | None:
    if keys.dtype == torch.float8_e4m3fn and not converts_to_fp8(keys.device):
        return NO_FP8
    if keys.stride() != values.stride():
        return TWO_LAYOUTS
    if keys.stride(-1) != 1 and keys.shape[-1] != 1:
        return "key_cache.stride(-1) is not 1"
    return TOO_MANY_SLOTS if keys.shape[:-2].numel() > MAX_SLOTS else None


def launch_rope(route: tuple[Heads, Plan], **call: Any) -> None:
    """Launch `qk_norm_rope`, its arguments by name."""
    repeated = launch(call, *route)
    if repeated is not None:
        _remember(call, repeated)


def launch(call: dict[str, Any], heads: Heads, plan: Plan) -> Callable[[Iterable[int]], None] | None:
    """Run a call of at least one token by a plan; the same launch at other addresses, None in the interpreter."""
    from serving_ops.kernels.triton.run_rope import run_qk_norm_rope

    names = "positions", "cos_sin_cache", "q_weight", "k_weight", "eps", "weight_offset"
    qkv: Tensor = call["qkv"]
    arguments = (*heads, *(call[name] for name in names), *_rotation_and_cache(call), plan, pdl(qkv.device))
    with torch.cuda._DeviceGuard(qkv.get_device()):
        launched: Callable[[Iterable[int]], None] | None = run_qk_norm_rope(*arguments)
    return launched


def _rotation_and_cache(call: dict[str, Any]) -> tuple[Any, Any]:
    from serving_ops.kernels.triton.run_rope import Cache, Rotation

    section = call["mrope_section"]
    section = None if section is None else tuple(section)
    rotation = Rotation(call["cos_sin_cache"].shape[1], call["is_neox"], section, call["mrope_interleaved"])
    if call["key_cache"] is None:
        return rotation, None
    caches = (rope_reference.in_slots(call[name]) for name in ("key_cache", "value_cache"))
    return rotation, Cache(*caches, call["slot_mapping"], call["k_scale"], call["v_scale"])
