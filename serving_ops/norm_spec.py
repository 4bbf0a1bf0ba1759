"""`NormSpec`, and `RopeSpec` within it: what a layer fixes of the calls that it makes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from serving_ops.quant_format import QuantFormat


@dataclass(frozen=True)
class RopeSpec:
    """A layer's rotation. Its `NormSpec` has the size of a head as `size`, and the number of q's heads as `heads`.

    num_kv_heads, is_neox, mrope_interleaved: the op's arguments of these names.
    rotary_dim: the rotated elements of a head; None for all.
    mrope_section: given where positions are (3, num_tokens). A list, as configurations have it, becomes a tuple.
    table_dtype, cache_dtype: of cos and sin, and of the caches; None for x's.
    index_dtype: of positions and slots.
    separate: whether q, k and v are given apart, and not as one tensor.
    has_cache: whether k and v go to a paged cache.
    block_size: tokens a block of a cache; None for a cache without blocks.
    """

    num_kv_heads: int = 1
    rotary_dim: int | None = None
    is_neox: bool = True
    mrope_section: tuple[int, int, int] | None = None
    mrope_interleaved: bool = False
    table_dtype: torch.dtype | None = None
    index_dtype: torch.dtype = torch.int64
    separate: bool = False
    has_cache: bool = False
    cache_dtype: torch.dtype | None = None
    block_size: int | None = 16

    def __post_init__(self) -> None:
        if self.mrope_section is not None:
            object.__setattr__(self, "mrope_section", tuple(self.mrope_section))


@dataclass(frozen=True)
class NormSpec:
    """One norm of a model: what its layer fixes. The number of rows is not part of it: kernels take any.

    op: the name of a registered op.
    size: N, the elements of a row (a tensor-parallel shard's, where it is sharded).
    dtype: of x; weight_dtype: of the weight, None for a layer without one; device: of both.
    eps, weight_offset, activation, norm_before_gate, group_size: the op's arguments of these names.
    has_bias, has_gate: whether the layer of a gated norm passes a bias, and a gate.
    heads: rows a token: q/k norms and gated norms see (num_tokens, heads, size).
    token_stride, gate_token_stride: elements from token to token of x and of z where they are views of a wider
        buffer; None for contiguous tensors.
    fmt: of a quantized norm; has_normed: whether its layer wants the unquantized rows too.
    fp32_residual: whether the residual is fp32 beside rows of half precision.
    rotation: of `qk_norm_rope`.

    Raises ValueError for a size or a number of heads below 1, and for a device that is not a torch.device.
    """

    op: str
    size: int
    dtype: torch.dtype
    weight_dtype: torch.dtype | None
    device: torch.device
    eps: float = 1e-6
    weight_offset: float = 0.0
    activation: str = "silu"
    norm_before_gate: bool = True
    group_size: int | None = None
    has_bias: bool = False
    has_gate: bool = True
    heads: int = 1
    token_stride: int | None = None
    gate_token_stride: int | None = None
    fmt: QuantFormat | None = None
    has_normed: bool = False
    fp32_residual: bool = False
    rotation: RopeSpec = RopeSpec()

    def __post_init__(self) -> None:
        for name in ("size", "heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"serving_ops: {name} is {getattr(self, name)}: it must be at least 1")
        if not isinstance(self.device, torch.device):
            raise ValueError(f"serving_ops: device is {self.device!r}: it must be a torch.device")

    @property
    def has_scale(self) -> bool:
        """Whether the layer brings one scale for all rows."""
        return self.fmt is not None and self.fmt.granularity == "tensor"

    def rows(self, num_tokens: int, token_stride: int | None) -> Tensor:
        """(num_tokens, heads, size), or (num_tokens, size) for one head, laid out as the layer's rows are."""
        width = self.heads * self.size
        buffer = torch.ones(num_tokens, token_stride or width, dtype=self.dtype, device=self.device)
        rows = buffer[:, :width]
        return rows if self.heads == 1 else rows.unflatten(1, (self.heads, self.size))

    def vector(self) -> Tensor | None:
        """(size,), in the weight's dtype; None for a layer without a weight."""
        return None if self.weight_dtype is None else torch.ones(self.size, dtype=self.weight_dtype, device=self.device)
