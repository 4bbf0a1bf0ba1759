"""vLLM's default order of IR providers starts with ours; an order that the user gave stays as it is."""

from __future__ import annotations

from typing import Any

from serving_ops.integrations.vllm.ir_providers import PROVIDER

OPS = ("rms_norm", "fused_add_rms_norm")
_METHOD = "get_default_ir_op_priority"


def _user_chose(vllm_config: Any, op: str) -> bool:
    """Whether the configuration names providers, and not because these defaults were merged into it before."""
    chosen = getattr(vllm_config.kernel_config.ir_op_priority, op) or []
    return bool(chosen) and PROVIDER not in chosen


def _prepend(priority: Any, vllm_config: Any) -> Any:
    for op in OPS:
        providers = getattr(priority, op)
        if PROVIDER not in providers and not _user_chose(vllm_config, op):
            setattr(priority, op, [PROVIDER, *providers])
    return priority


def install() -> None:
    """Wrap the platform's default priority. Raises RuntimeError where no provider of ours is registered."""
    from vllm import ir
    from vllm.platforms import current_platform

    if not all(PROVIDER in getattr(ir.ops, op).impls for op in OPS):
        # vLLM accepts a provider that it does not know, and then fails in the worker.
        raise RuntimeError("the IR providers are not registered")
    platform = type(current_platform)
    original = getattr(platform, _METHOD).__func__
    if getattr(original, "by_serving_ops", False):
        return

    def with_serving_ops(cls: Any, vllm_config: Any) -> Any:
        return _prepend(original(cls, vllm_config), vllm_config)

    with_serving_ops.by_serving_ops = True  # type: ignore[attr-defined]
    setattr(platform, _METHOD, classmethod(with_serving_ops))


def drop(op: str) -> None:
    """Give one IR op back to vLLM's other providers in this process, before anything is compiled."""
    from vllm import ir

    ir_op = getattr(ir.ops, op)
    ir_op.set_default([provider for provider in ir_op.get_priority() if provider != PROVIDER])
