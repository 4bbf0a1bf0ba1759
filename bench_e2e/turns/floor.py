"""What is there to win: an engine whose norms do nothing.

Its tokens are nonsense. Its time is that of everything but the norms, which no norm can beat; compiled, Inductor may
fuse what lay on both sides of a norm, so that the floor is a little lower than any norm's launch would leave it.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

VARIANT = "no norms"
METHODS = ("forward_native", "forward_cuda", "forward_cpu")


def _norm_nothing(layer: Any, x: Any, residual: Any = None, *more: Any, **others: Any) -> Any:
    return x if residual is None else (x, residual)


def _gate_nothing(layer: Any, x: Any, z: Any = None, *more: Any, **others: Any) -> Any:
    return x


def remove_norms() -> None:
    """Make vLLM's norms return what they get, in this process, before its layers are built."""
    from vllm.model_executor.layers import layernorm

    nothing = {"RMSNorm": _norm_nothing, "GemmaRMSNorm": _norm_nothing, "RMSNormGated": _gate_nothing}
    for name, forward in nothing.items():
        for method in METHODS:
            setattr(getattr(layernorm, name), method, forward)


def remove_sglangs_norms() -> None:
    """The same for SGLang's, of this process. Raises LookupError where this SGLang has one of them nowhere."""
    from serving_ops.integrations.sglang.layers import ADAPTERS

    for adapter in ADAPTERS:
        nothing = _gate_nothing if "rms_norm_gated" in adapter.ops else _norm_nothing
        for norm in _classes(adapter.name, adapter.defined_in):
            for method in METHODS if hasattr(norm, METHODS[0]) else ("forward",):
                setattr(norm, method, nothing)


def _classes(name: str, defined_in: tuple[str, ...]) -> list[type]:
    """In every place that this SGLang has it."""
    modules = [module for module in map(_module, defined_in) if module is not None]
    found = [getattr(module, name) for module in modules if hasattr(module, name)]
    if not found:
        raise LookupError(f"this SGLang has no {name} in {' or '.join(defined_in)}")
    return found


def _module(name: str) -> ModuleType | None:
    """None where there is no such module; one that cannot be imported is an error."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if f"{name}.".startswith(f"{error.name}."):
            return None
        raise
