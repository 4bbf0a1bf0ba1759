"""Our place in vLLM's default order of IR providers; an order that the user gave stays as it is.

Where the norms' consumers quantize, vLLM's order stays too (see `quantization`). And vLLM's other defaults never see
ours: it turns a fusion pass on where another provider than its native one comes first.

First, but for rms_norm of heads in compiled CUDA graphs, which are left to Inductor (see ir_providers.ROWS_PROVIDER).
Eager on an H200 (vLLM 0.25.1, Qwen3-0.6B, 2026-11-21), ours before vLLM's C kernels take 0.97 of vLLM's time a token
and 0.92 of its time to the first one at 8192 tokens. Without the C++ library calls are launched from Python, which
took 38 us of host time where vLLM's C kernels took 8.8, so eager what those take stays theirs.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Iterable, Iterator
from typing import Any

from serving_ops import extension, settings
from serving_ops.integrations.common import guard
from serving_ops.integrations.vllm import installed, quantization
from serving_ops.integrations.vllm.ir_providers import OURS, PROVIDER, ROWS_PROVIDER

OPS = ("rms_norm", "fused_add_rms_norm")
VLLM_C = "vllm_c"
"""On CUDA in vLLM's default order in eager mode alone."""

_METHOD = "get_default_ir_op_priority"
_DEFAULTS_METHOD = "_apply_optimization_level_defaults"


def _user_chose(vllm_config: Any, op: str) -> bool:
    """Whether the configuration names providers, and not because these defaults were merged into it before."""
    chosen = getattr(vllm_config.kernel_config.ir_op_priority, op) or []
    return bool(chosen) and OURS.isdisjoint(chosen)


def with_ours(op: str, providers: list[str], *, cuda: bool) -> list[str]:
    """vLLM's default order for one op, and ours in its place."""
    eager_cuda = cuda and VLLM_C in providers
    ours = ROWS_PROVIDER if cuda and not eager_cuda and op == "rms_norm" else PROVIDER
    if eager_cuda and extension.cpp_library() is None:
        return [VLLM_C, ours, *(provider for provider in providers if provider != VLLM_C)]
    return [ours, *providers]


def _add(priority: Any, vllm_config: Any, *, cuda: bool) -> None:
    if quantization.why_norms_stay(vllm_config) is not None:
        return
    for op in OPS:
        providers = getattr(priority, op)
        if op in settings.ops() and OURS.isdisjoint(providers) and not _user_chose(vllm_config, op):
            setattr(priority, op, with_ours(op, providers, cuda=cuda))


@contextlib.contextmanager
def _hidden(priority: Any) -> Iterator[None]:
    """vLLM's own order within, ours again afterwards."""
    kept = {op: getattr(priority, op) for op in OPS}
    for op, providers in kept.items():
        setattr(priority, op, [provider for provider in providers if provider not in OURS])
    try:
        yield
    finally:
        for op, providers in kept.items():
            setattr(priority, op, providers)


def _hide_from_defaults() -> None:
    """Have vLLM choose its fusion passes by its own order. Raises RuntimeError where it chooses them elsewhere."""
    from vllm.config import VllmConfig

    if not hasattr(VllmConfig, _DEFAULTS_METHOD):
        raise RuntimeError(f"VllmConfig has no {_DEFAULTS_METHOD}")
    installed.wrap(VllmConfig, _DEFAULTS_METHOD, _without_ours)


def _without_ours(original: Any) -> Any:
    @functools.wraps(original)
    def without_serving_ops(self: Any, *args: Any, **kwargs: Any) -> Any:
        with _hidden(self.kernel_config.ir_op_priority):
            return original(self, *args, **kwargs)

    return without_serving_ops


def install() -> None:
    """Wrap the platform's default priority, and the choice of defaults that depend on it.

    Raises RuntimeError where no provider of ours is registered, or vLLM asks for the priority in another way.
    """
    _hide_from_defaults()
    from vllm import ir
    from vllm.platforms import current_platform

    if ROWS_PROVIDER not in ir.ops.rms_norm.impls or not all(PROVIDER in getattr(ir.ops, op).impls for op in OPS):
        # vLLM accepts a provider that it does not know, and then fails in the worker.
        raise RuntimeError("the IR providers are not registered")
    installed.wrap(type(current_platform), _METHOD, _adding_ours)


def _adding_ours(method: Any) -> Any:
    from vllm.platforms import current_platform

    original = method.__func__
    if list(inspect.signature(original).parameters) != ["cls", "vllm_config"]:
        raise RuntimeError(f"{method.__self__.__name__}.{_METHOD} takes other arguments")

    @functools.wraps(original)
    def with_serving_ops(cls: Any, vllm_config: Any) -> Any:
        priority = original(cls, vllm_config)
        with guard.unless_strict("vLLM", "add to vLLM's IR priority"):
            _add(priority, vllm_config, cuda=current_platform.is_cuda())
        return priority

    return classmethod(with_serving_ops)


def drop(ops: Iterable[str]) -> None:
    """Give IR ops back to vLLM's other providers in this process, before anything is compiled."""
    from vllm import ir

    for ir_op in (getattr(ir.ops, op) for op in ops):
        before = ir_op.get_priority()
        installed.on_undo(functools.partial(ir_op.set_default, before))
        ir_op.set_default([provider for provider in before if provider not in OURS])
