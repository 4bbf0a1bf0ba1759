"""What gated delta nets ask of `sgl_kernel` on CPU, token by token in plain PyTorch: slow, and easy to check.

Shapes: T tokens of B requests, H key heads and HV value heads of K and V elements; a state is (HV, V, K), that of a
convolution (channels, width - 1); states lie in pools, whose rows `..._indices` names.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def _requests(starts: Tensor, indices: Tensor) -> Iterator[tuple[int, int, int]]:
    """First token, the one past the last, and row in the pool, of each request."""
    for (begin, end), row in zip(pairwise(starts.tolist()), indices.tolist(), strict=False):
        yield begin, end, row


def _convolve(x: Tensor, before: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None) -> Tensor:
    """x (channels, tokens) with the inputs before it, (channels, width - 1)."""
    whole = torch.cat([before.to(x.dtype), x], dim=-1)
    result = F.conv1d(whole[None].float(), weight[:, None].float(), bias, groups=len(weight))[0]
    return (F.silu(result) if activation in ("silu", "swish") else result).to(x.dtype)


def causal_conv1d_fn_cpu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    activation: str | None,
    conv_states: Tensor,
    has_initial_state: Tensor,
    cache_indices: Tensor,
    query_start_loc: Tensor,
    **_: Any,
) -> Tensor:
    """x (channels, T) -> the same; the last inputs of each request go into its state."""
    out, width = torch.empty_like(x), weight.shape[-1]
    known = has_initial_state.tolist()
    for request, (begin, end, row) in enumerate(_requests(query_start_loc, cache_indices)):
        before = conv_states[row] if known[request] else torch.zeros_like(conv_states[row])
        out[:, begin:end] = _convolve(x[:, begin:end], before, weight, bias, activation)
        conv_states[row] = torch.cat([before, x[:, begin:end]], dim=-1)[:, 1 - width :]
    return out


def causal_conv1d_update_cpu(
    x: Tensor,
    conv_states: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    *,
    conv_state_indices: Tensor,
    **_: Any,
) -> Tensor:
    """x (B, channels), a token a request, -> the same."""
    out = torch.empty_like(x)
    for request, row in enumerate(conv_state_indices.tolist()):
        token = x[request, :, None]
        out[request] = _convolve(token, conv_states[row], weight, bias, activation)[:, 0]
        conv_states[row] = torch.cat([conv_states[row], token], dim=-1)[:, 1:]
    return out


def fused_gdn_gating_cpu(decay: Tensor, a: Tensor, b: Tensor, dt_bias: Tensor) -> tuple[Tensor, Tensor]:
    """a, b (T, HV) -> the logarithm of each state's decay and the strength of its update, (1, T, HV)."""
    return (-decay.float().exp() * F.softplus(a.float() + dt_bias))[None], b.float().sigmoid()[None]


def _delta_rule(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor) -> Tensor:
    """q, k (T, H, K), v (T, HV, V), g, beta (T, HV) -> (T, HV, V); state (HV, V, K) is carried on."""
    heads = v.shape[1] // k.shape[1]
    q, k = (F.normalize(part.float(), dim=-1).repeat_interleave(heads, dim=1) for part in (q, k))
    out = torch.empty_like(v)
    for token in range(len(v)):
        state *= g[token].exp()[:, None, None]
        change = (v[token].float() - torch.einsum("hvk,hk->hv", state, k[token])) * beta[token][:, None]
        state += torch.einsum("hv,hk->hvk", change, k[token])
        out[token] = torch.einsum("hvk,hk->hv", state, q[token]) * q.shape[-1] ** -0.5
    return out


def chunk_gated_delta_rule_cpu(
    *,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    initial_state: Tensor,
    initial_state_indices: Tensor,
    cu_seqlens: Tensor,
    **_: Any,
) -> tuple[Tensor, None, None]:
    """All (1, T, ...) -> (1, T, HV, V)."""
    out = torch.empty_like(v)
    for begin, end, row in _requests(cu_seqlens, initial_state_indices):
        state = initial_state[row].float()
        out[0, begin:end] = _delta_rule(*(part[0, begin:end] for part in (q, k, v, g, beta)), state)
        initial_state[row] = state
    return out, None, None


def fused_sigmoid_gating_delta_rule_update_cpu(
    *,
    A_log: Tensor,
    dt_bias: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    initial_state_source: Tensor,
    initial_state_indices: Tensor,
    cu_seqlens: Tensor,
    **_: Any,
) -> Tensor:
    """All (1, B, ...), a token a request, -> (1, B, HV, V)."""
    g, beta = fused_gdn_gating_cpu(A_log, a, b, dt_bias)
    state = {"initial_state": initial_state_source, "initial_state_indices": initial_state_indices}
    return chunk_gated_delta_rule_cpu(q=q, k=k, v=v, g=g, beta=beta, cu_seqlens=cu_seqlens, **state)[0]
