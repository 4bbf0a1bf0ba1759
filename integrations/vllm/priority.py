"""The place of our providers in vLLM's default order of IR providers.

An order that the user gave stays as it is, and so does vLLM's order where linear layers quantize (see `quantization`).
vLLM's other defaults do not see our providers: vLLM would turn a fusion pass on if its native provider were not first.

Our providers come first, with two exceptions:

- In compiled CUDA models, Inductor keeps `rms_norm` of heads (see ir_providers.ROWS_PROVIDER).
- In eager CUDA models without the C++ library, vLLM's C kernels come first. Calls launched from Python took 38 us of
  host time, and vLLM's C kernels 8.8.

With the library, an eager Qwen3-0.6B on an H200 (vLLM 0.25.1, 2026-11-21) took 0.97 of vLLM's time per token, and 0.92
of its TTFT at 8192 tokens.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable
from typing import Any

from serving_ops import extension, settings
from serving_ops.integrations.common import guard
from serving_ops.integrations.common.norm_classes import NORMS as OPS
from serving_ops.integrations.vllm import installed, quantization, token_pass
from serving_ops.integrations.vllm.ir_providers import OURS, PROVIDER, ROWS_PROVIDER

VLLM_C = "vllm_c"
"""A provider that vLLM's default order has only in eager mode on CUDA."""

_METHOD = "get_default_ir_op_priority"
_DEFAULTS_METHOD = "_apply_optimization_level_defaults"


def user_chose_any(vllm_config: Any) -> bool:
    """Return whether the order of a configuration whose defaults are set is another one than the platform's default."""
    from vllm.platforms import current_platform

    order = vllm_config.kernel_config.ir_op_priority
    default = current_platform.get_default_ir_op_priority(vllm_config)
    return any(list(getattr(order, op)) != list(getattr(default, op)) for op in OPS)


def with_ours(op: str, providers: list[str], *, cuda: bool) -> list[str]:
    """Return vLLM's default order for one op, with our provider added."""
    eager_cuda = cuda and VLLM_C in providers
    ours = ROWS_PROVIDER if cuda and not eager_cuda and op == "rms_norm" else PROVIDER
    if eager_cuda and extension.cpp_library() is None:
        return [VLLM_C, ours, *(provider for provider in providers if provider != VLLM_C)]
    return [ours, *providers]


def _without_ours(providers: Iterable[str]) -> list[str]:
    return [provider for provider in providers if provider not in OURS]


def _add(priority: Any, vllm_config: Any, *, cuda: bool) -> None:
    """Add our providers, except where the user named others: an order that has ours came from these defaults."""
    if quantization.why_norms_stay(vllm_config) is not None:
        return
    for op in OPS:
        providers, chosen = getattr(priority, op), getattr(vllm_config.kernel_config.ir_op_priority, op) or []
        users = bool(chosen) and OURS.isdisjoint(chosen)
        if op in settings.ops() and OURS.isdisjoint(providers) and not users:
            setattr(priority, op, with_ours(op, providers, cuda=cuda))


def install() -> None:
    """Wrap the platform's default priority, and the choice of defaults that depend on it.

    Raises RuntimeError where no provider of ours is registered, or vLLM makes these choices in another way.
    """
    from vllm import ir
    from vllm.config import VllmConfig
    from vllm.platforms import current_platform

    if not hasattr(VllmConfig, _DEFAULTS_METHOD):
        raise RuntimeError(f"VllmConfig has no {_DEFAULTS_METHOD}")
    installed.wrap(VllmConfig, _DEFAULTS_METHOD, _choosing_without_ours)
    if ROWS_PROVIDER not in ir.ops.rms_norm.impls or not all(PROVIDER in getattr(ir.ops, op).impls for op in OPS):
        # vLLM accepts a provider that it does not know, and then fails in the worker.
        raise RuntimeError("the IR providers are not registered")
    installed.wrap(type(current_platform), _METHOD, _adding_ours)


def _choosing_without_ours(original: Any) -> Any:
    """Let vLLM choose its fusion passes by its own order."""

    @functools.wraps(original)
    def without_serving_ops(self: Any, *args: Any, **kwargs: Any) -> Any:
        with guard.unless_strict("vLLM", "read its pass configuration"):
            token_pass.remember_choice(self)
        order, kept = None, {}
        with guard.unless_strict("vLLM", "read its IR priority"):
            order = self.kernel_config.ir_op_priority
            kept = {op: getattr(order, op) for op in OPS}
        for op, providers in kept.items():
            setattr(order, op, _without_ours(providers))
        try:
            return original(self, *args, **kwargs)
        finally:
            for op, providers in kept.items():
                setattr(order, op, providers)

    return without_serving_ops


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
        ir_op.set_default(_without_ours(before))
