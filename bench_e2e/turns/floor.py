"""What is there to win: engines whose norms do nothing, or are kernels that do nothing.

Their tokens are nonsense. Without norms, the time is that of everything else, which no norm can beat; compiled,
Inductor may fuse what lay on both sides of a norm, so that this floor is a little lower than any norm's launch would
leave it. With empty kernels, the time is that of norms that cost nothing but their launch.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

NO_NORMS = "no norms"
EMPTY_NORMS = "empty norms"
VARIANTS = (NO_NORMS, EMPTY_NORMS)
METHODS = ("forward_native", "forward_cuda", "forward_cpu")


def _norm_nothing(layer: Any, x: Any, residual: Any = None, *more: Any, **others: Any) -> Any:
    return x if residual is None else (x, residual)


def _gate_nothing(layer: Any, x: Any, z: Any = None, *more: Any, **others: Any) -> Any:
    return x


def _norm_empty(layer: Any, x: Any, *more: Any, **others: Any) -> Any:
    _launch_nothing(x)
    return _norm_nothing(layer, x, *more, **others)


def _gate_empty(layer: Any, x: Any, *more: Any, **others: Any) -> Any:
    _launch_nothing(x)
    return _gate_nothing(layer, x, *more, **others)


def _launch_nothing(x: Any) -> None:
    from serving_ops.bench_e2e.turns.empty_norm import empty_norm

    empty_norm(x)


def remove_norms() -> None:
    """Make vLLM's norms return what they get, in this process, before its layers are built."""
    from vllm.model_executor.layers import layernorm

    nothing = {"RMSNorm": _norm_nothing, "GemmaRMSNorm": _norm_nothing, "RMSNormGated": _gate_nothing}
    for name, forward in nothing.items():
        for method in METHODS:
            setattr(getattr(layernorm, name), method, forward)


def remove_sglangs_norms(variant: str = NO_NORMS) -> None:
    """The same for SGLang's, of this process; or make them empty kernels, of EMPTY_NORMS.

    Raises LookupError where this SGLang has one of them nowhere.
    """
    from serving_ops.integrations.sglang.layers import ADAPTERS

    norm_nothing, gate_nothing = (_norm_nothing, _gate_nothing) if variant == NO_NORMS else (_norm_empty, _gate_empty)
    for adapter in ADAPTERS:
        nothing = gate_nothing if "rms_norm_gated" in adapter.ops else norm_nothing
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
