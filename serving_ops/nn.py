"""The norms as modules, and `replace_norms`, which puts them into a loaded Hugging Face model.

They train and serve with the same bits a row. Parameters are named as Hugging Face names them, so checkpoints load.
"""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import torch
from torch import Tensor

from serving_ops.ops.add_rms_norm import add_rms_norm
from serving_ops.ops.description import EPS
from serving_ops.ops.rms_norm import rms_norm
from serving_ops.ops.rms_norm_gated import rms_norm_gated

for _op in ("rms_norm", "add_rms_norm", "rms_norm_gated"):  # torch.fx records the calls, with their gradients
    torch.fx.wrap(_op)


class _Norm(torch.nn.Module):
    """size: N, the last dimension of what is normed; eps: added to the mean of squares.

    Raises RuntimeError for an eps that the ops refuse.
    """

    weight_offset = 0.0

    def __init__(
        self,
        size: int,
        eps: float = 1e-6,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        EPS.check(eps, {})
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


class Replaced(NamedTuple):
    """What `replace_norms` did: how many norms of each class it replaced, and why it left each other norm alone."""

    replaced: dict[str, int]
    left: dict[str, str]  # name in the model -> reason


def replace_norms(model: torch.nn.Module) -> Replaced:
    """Make a Hugging Face model's norms these modules, in place.

    Each replaced norm stays the same object: its class changes, its `eps` is set, and its parameter, hooks, attributes
    and training flag stay. A norm is left alone if its class is not known to compute what these modules do, if its
    forward is not its class's, or if it holds more than a weight. Norms are modules whose class has `Norm` in its name.
    """
    replaced: dict[str, int] = {}
    left: dict[str, str] = {}
    for name, module in model.named_modules():
        kind = type(module).__name__
        if "Norm" not in kind or isinstance(module, _Norm):
            continue
        reason = _why_not(module)
        if reason is not None:
            left[name] = reason
            continue
        _become(module, REPLACEMENTS[kind])
        replaced[kind] = replaced.get(kind, 0) + 1
    return Replaced(replaced, left)


def _why_not(module: torch.nn.Module) -> str | None:
    """Why these modules do not stand in for it: another class may have a known name, and compute something else."""
    kind = type(module)
    home = sys.modules.get(kind.__module__)
    of_transformers = kind.__module__.startswith("transformers.models.") and getattr(home, kind.__name__, None) is kind
    if kind.__name__ not in REPLACEMENTS or not of_transformers:
        return f"its class, {kind.__module__}.{kind.__qualname__}, is not known to compute what serving_ops.nn does"
    if "forward" in vars(module):
        return "its forward is set on the instance"
    if kind.forward.__module__ != kind.__module__:
        return f"its class's forward was replaced by one of {kind.forward.__module__}"
    held = [name for name, _ in (*module.named_parameters(), *module.named_buffers())]
    return None if held == ["weight"] else f"it holds {', '.join(held) or 'nothing'} where a weight alone is known"


def _become(module: Any, kind: type[_Norm]) -> None:
    """Change its class: hooks may refer to the very object, and their handles to its own tables of hooks."""
    eps = module.variance_epsilon if hasattr(module, "variance_epsilon") else module.eps
    module.__class__ = kind
    module.eps = float(eps)
