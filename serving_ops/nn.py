"""The norms as modules, and `replace_norms`, which puts them into a loaded Hugging Face model.

They train and serve with the same bits a row. Parameters are named as Hugging Face names them, so checkpoints load.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

from serving_ops.ops.add_rms_norm import add_rms_norm
from serving_ops.ops.rms_norm import rms_norm
from serving_ops.ops.rms_norm_gated import rms_norm_gated

for _op in ("rms_norm", "add_rms_norm", "rms_norm_gated"):  # torch.fx records the calls, with their gradients
    torch.fx.wrap(_op)


class _Norm(torch.nn.Module):
    """size: N, the last dimension of what is normed; eps: added to the mean of squares."""

    weight_offset = 0.0

    def __init__(
        self,
        size: int,
        eps: float = 1e-6,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.empty(size, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Make it the norm without a weight, as initialisation from the meta device wants."""
        torch.nn.init.constant_(self.weight, 1.0 - self.weight_offset)

    def extra_repr(self) -> str:
        return f"{self.weight.numel()}, eps={self.eps}"


class RMSNorm(_Norm):
    """`rms_norm(x) * weight`; with a residual, `(rms_norm(x + residual) * weight, x + residual)`.

    Computes in fp32; x is (..., N), fp16, bf16, fp32 or float64, any strides, and is not written. Raises RuntimeError
    for what `serving_ops.checks` calls wrong.
    """

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        if residual is None:
            return rms_norm(x, self.weight, self.eps, weight_offset=self.weight_offset)
        return add_rms_norm(x, residual, self.weight, self.eps, weight_offset=self.weight_offset)


class GemmaRMSNorm(RMSNorm):
    """The same with a weight stored as its difference from one, multiplied in fp32: Gemma, Qwen3-Next, Qwen3.5."""

    weight_offset = 1.0


class RMSNormGated(_Norm):
    """`rms_norm(x) * weight * silu(gate)`, as gated delta nets have it: Qwen3-Next, Qwen3.5.

    x and gate are (..., N); all in fp32, rounded once at the end. Raises RuntimeError for what `serving_ops.checks`
    calls wrong.
    """

    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        return rms_norm_gated(x, gate, self.weight, self.eps)


_PLAIN = ("Llama", "Mistral", "Mixtral", "Qwen2", "Qwen2Moe", "Qwen3", "Qwen3Moe", "Phi3")  # rounded before the weight
_FROM_ONE = ("Gemma", "Gemma2", "Gemma3", "Qwen3Next", "Qwen3_5", "Qwen3_5Moe")
_GATED = ("Qwen3Next", "Qwen3_5", "Qwen3_5Moe")

REPLACEMENTS: dict[str, type[_Norm]] = {
    **{f"{family}RMSNorm": RMSNorm for family in _PLAIN},
    **{f"{family}RMSNorm": GemmaRMSNorm for family in _FROM_ONE},
    **{f"{family}RMSNormGated": RMSNormGated for family in _GATED},
}
"""Class name in transformers -> the module that computes the same."""


def replace_norms(model: torch.nn.Module) -> dict[str, int]:
    """Put these modules in place of a Hugging Face model's norms, around the very same parameters.

    Returns how many of each class were replaced; norms of a class that is not in `REPLACEMENTS`, or that
    only has the name of one, stay as they are.
    """
    replaced: dict[str, int] = {}
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            kind = type(child).__name__
            if kind in REPLACEMENTS and _is_of_transformers(child):
                setattr(parent, name, _like(child, REPLACEMENTS[kind]))
                replaced[kind] = replaced.get(kind, 0) + 1
    return replaced


def _is_of_transformers(module: torch.nn.Module) -> bool:
    """Whether its class is the one of transformers and not another of that name, with a weight and nothing else."""
    defined_in = type(module).__module__
    known = defined_in.startswith("transformers.models.") and type(module) is getattr(
        sys.modules.get(defined_in), type(module).__name__, None
    )
    return known and [name for name, _ in module.named_parameters()] == ["weight"] and not list(module.buffers())


def _like(theirs: torch.nn.Module, kind: type[_Norm]) -> _Norm:
    weight = theirs.get_parameter("weight")
    ours = kind(weight.numel(), _eps_of(theirs), device=torch.device("meta"))
    ours.weight = weight
    return ours.train(theirs.training)


def _eps_of(module: Any) -> float:
    return float(module.variance_epsilon if hasattr(module, "variance_epsilon") else module.eps)
