"""What is there to win: an engine whose norms do nothing.

Its tokens are nonsense. Its time is that of everything but the norms, which no norm can beat; compiled, Inductor may
fuse what lay on both sides of a norm, so that the floor is a little lower than any norm's launch would leave it.
"""

from __future__ import annotations

import importlib
from typing import Any

VARIANT = "no norms"
FLA = "sglang.kernels.ops.attention.fla"
METHODS = ("forward_native", "forward_cuda", "forward_cpu")


def _norm_nothing(layer: Any, x: Any, residual: Any = None) -> Any:
    return x if residual is None else (x, residual)


def _gate_nothing(layer: Any, x: Any, z: Any = None) -> Any:
    return x


def remove_norms() -> None:
    """Make vLLM's norms return what they get, in this process, before its layers are built."""
    from vllm.model_executor.layers import layernorm

    nothing = {"RMSNorm": _norm_nothing, "GemmaRMSNorm": _norm_nothing, "RMSNormGated": _gate_nothing}
    for name, forward in nothing.items():
        for method in METHODS:
            setattr(getattr(layernorm, name), method, forward)


def remove_sglangs_norms() -> None:
    """The same for SGLang's, of this process."""
    from sglang.srt.layers import layernorm

    for name in ("RMSNorm", "GemmaRMSNorm"):
        for method in METHODS:
            setattr(getattr(layernorm, name), method, _norm_nothing)
    for module, name in (("layernorm_gated", "RMSNorm"), ("fused_norm_gate", "FusedRMSNormGated")):
        getattr(importlib.import_module(f"{FLA}.{module}"), name).forward = _gate_nothing
