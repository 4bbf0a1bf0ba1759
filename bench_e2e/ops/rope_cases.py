"""The cases of `qk_norm_rope`: their tensors, the plain formula, and what is right."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from serving_ops import reference, rope_reference
from serving_ops.rope_spec import RopeSpec

BLOCK_SIZE = RopeSpec().block_size or 1
POSITIONS = 40960
THETA = 1e6  # both as in Qwen3's configuration

Arguments = Mapping[str, Any]  # of the op, by name


def placed(call: Arguments) -> dict[str, Any]:
    """A sample call with the table of a model, positions anywhere in it, slots in no order, and caches of NaN."""
    made = {name: value for name, value in call.items() if value is not None}
    qkv, size = made["qkv"], made["head_dim"]
    frequencies = THETA ** -(torch.arange(0, size, 2, device=qkv.device) / size)
    angles = torch.arange(POSITIONS, device=qkv.device)[:, None] * frequencies
    made["cos_sin_cache"] = torch.cat((angles.cos(), angles.sin()), dim=1).to(qkv.dtype)
    made["positions"].random_(POSITIONS)
    if "key_cache" in made:
        blocks, block_size = made["key_cache"].fill_(torch.nan).shape[:2]
        made["value_cache"].fill_(torch.nan)
        made["slot_mapping"] = torch.randperm(blocks * block_size, device=qkv.device)[: qkv.shape[0]]
    return made


def heads(call: Arguments) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v as (num_tokens, heads, head_dim)."""
    sizes = call["num_q_heads"], call["num_kv_heads"], call["num_kv_heads"]
    q, k, v = call["qkv"].unflatten(1, (-1, call["head_dim"])).split(sizes, dim=1)
    return q, k, v


def rotated_heads(call: Arguments) -> Tensor:
    """What the op writes in place: q and k, (num_tokens, heads, head_dim)."""
    count = call["num_q_heads"] + call["num_kv_heads"]
    return call["qkv"].unflatten(1, (-1, call["head_dim"]))[:, :count]  # type: ignore[no-any-return]


def formula(call: Arguments) -> tuple[Tensor, Tensor]:
    """New q and k; k and v in the caches."""
    q, k, v = heads(call)
    cos, sin = rope_reference.cos_and_sin(call["positions"], call["cos_sin_cache"], None, False)
    q, k = (
        rope_reference.rotated(reference.rms_norm(x, weight), cos, sin, True)
        for x, weight in ((q, call["q_weight"]), (k, call["k_weight"]))
    )
    if "key_cache" in call:
        place = call["slot_mapping"] // BLOCK_SIZE, call["slot_mapping"] % BLOCK_SIZE
        call["key_cache"].index_put_(place, k)
        call["value_cache"].index_put_(place, v)
    return q, k


def exact(call: Arguments, tokens: Tensor) -> Tensor:
    """In float64, for some tokens: q, k, and what is cached of k and v, (tokens, heads, head_dim)."""
    names = "cos_sin_cache", "q_weight", "k_weight"
    wide = {name: call[name].double() for name in names} | {"qkv": call["qkv"][tokens].double()}
    sizes = {name: call[name] for name in ("num_q_heads", "num_kv_heads", "head_dim")}
    q, k = formula({**wide, **sizes, "positions": call["positions"][tokens]})
    return torch.cat((q, k, k, heads({**wide, **sizes})[2]) if "key_cache" in call else (q, k), dim=1)


def results(call: Arguments, returned: Any) -> Tensor:
    """What a call came to, for every token, as `exact` has it. returned: q and k, or None where they are in qkv."""
    done = [rotated_heads(call)] if returned is None else [x.view(x.shape[0], -1, call["head_dim"]) for x in returned]
    if "key_cache" in call:
        done += [call[name].flatten(0, 1)[call["slot_mapping"]] for name in ("key_cache", "value_cache")]
    return torch.cat(done, dim=1)
