"""Our place in vLLM's default order of IR providers; an order that the user gave stays as it is.

CPU: first. CUDA, compiled: before native, for whole rows. CUDA, eager: before native and after vLLM's C kernels, which
take 8.8 us of host time a call where ours take 38 (H200, 2026-11-21); what those refuse, as Gemma's fp32 weights, is
unfused in native.
"""

from __future__ import annotations

from typing import Any

from serving_ops.integrations.vllm.ir_providers import OURS, PROVIDER, ROWS_PROVIDER

OPS = ("rms_norm", "fused_add_rms_norm")
VLLM_C = "vllm_c"
"""On CUDA in vLLM's default order in eager mode alone."""

_METHOD = "get_default_ir_op_priority"


def _user_chose(vllm_config: Any, op: str) -> bool:
    """Whether the configuration names providers, and not because these defaults were merged into it before."""
    chosen = getattr(vllm_config.kernel_config.ir_op_priority, op) or []
    return bool(chosen) and OURS.isdisjoint(chosen)


def with_ours(op: str, providers: list[str], *, cuda: bool) -> list[str]:
    """vLLM's default order for one op, and ours in its place."""
    if not cuda:
        return [PROVIDER, *providers]
    ours = ROWS_PROVIDER if op == "rms_norm" and VLLM_C not in providers else PROVIDER
    at = providers.index("native") if "native" in providers else len(providers)
    return [*providers[:at], ours, *providers[at:]]


def _add(priority: Any, vllm_config: Any, *, cuda: bool) -> Any:
    for op in OPS:
        providers = getattr(priority, op)
        if OURS.isdisjoint(providers) and not _user_chose(vllm_config, op):
            setattr(priority, op, with_ours(op, providers, cuda=cuda))
    return priority


def install() -> None:
    """Wrap the platform's default priority. Raises RuntimeError where no provider of ours is registered."""
    from vllm import ir
    from vllm.platforms import current_platform

    if ROWS_PROVIDER not in ir.ops.rms_norm.impls or not all(PROVIDER in getattr(ir.ops, op).impls for op in OPS):
        # vLLM accepts a provider that it does not know, and then fails in the worker.
        raise RuntimeError("the IR providers are not registered")
    platform = type(current_platform)
    original = getattr(platform, _METHOD).__func__
    if getattr(original, "by_serving_ops", False):
        return

    def with_serving_ops(cls: Any, vllm_config: Any) -> Any:
        return _add(original(cls, vllm_config), vllm_config, cuda=current_platform.is_cuda())

    with_serving_ops.by_serving_ops = True  # type: ignore[attr-defined]
    setattr(platform, _METHOD, classmethod(with_serving_ops))


def drop(op: str) -> None:
    """Give one IR op back to vLLM's other providers in this process, before anything is compiled."""
    from vllm import ir

    ir_op = getattr(ir.ops, op)
    ir_op.set_default([provider for provider in ir_op.get_priority() if provider not in OURS])
