"""What the plugin puts into vLLM, in order."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterable
from typing import Any

from serving_ops import extension, settings, support
from serving_ops.integrations.common import guard
from serving_ops.integrations.vllm import installed, quantization
from serving_ops.integrations.vllm.adapters import ADAPTERS, RMS_NORM, STATE_SPACE

_logger = logging.getLogger("vllm.serving_ops")

STARTUP = "startup"
COMPILE_CACHE = "compile_cache"
IR_PROVIDERS = "ir_providers"
PRIORITY = "priority"

FEATURES = (STARTUP, COMPILE_CACHE, IR_PROVIDERS, PRIORITY, *(name for name in ADAPTERS if name not in STATE_SPACE))
"""Modules of this package with an `install()` that may be called again and raises where it cannot, and classes that are
replaced. A class is replaced only if SERVING_OPS allows all of its operators.

The start-up report comes first: it tells what became of the others, and without it none is installed. The cache key
comes before what changes compiled code: without it vLLM would reuse artifacts compiled with other operators. The
classes of state-space layers are replaced for models that have such layers: importing vLLM's takes 1.2 s.
"""


def why_no_kernels() -> str | None:
    """Return why our kernels cannot run norms on this platform, or None."""
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        return extension.why_missing()
    if current_platform.is_cuda():
        return support.no_triton()
    return f"no kernels for {type(current_platform).__name__}"


def ops() -> frozenset[str]:
    """Return the operators that the user allows, without those that were given back to vLLM."""
    return frozenset(settings.ops() - installed.given_back)


def is_batch_invariant() -> bool:
    """Whether the user asked for results that do not depend on the batch: eager CUDA norms then pass vLLM's IR by."""
    from vllm import envs
    from vllm.platforms import current_platform

    return bool(current_platform.is_cuda()) and bool(getattr(envs, "VLLM_BATCH_INVARIANT", False))


def why_no_providers() -> str | None:
    """Return why our providers are missing from vLLM's IR or from its order, or None."""
    return installed.failures.get(IR_PROVIDERS) or installed.failures.get(PRIORITY)


def _is_wanted(feature: str) -> bool:
    adapter = ADAPTERS.get(feature)
    if adapter is None:
        return True
    if adapter.needs_cpp and extension.cpp_library() is None:
        return False
    return settings.ops().issuperset(adapter.ops) and (adapter is not RMS_NORM or is_batch_invariant())


def _why_not(feature: str) -> str | None:
    if feature == STARTUP:
        return None
    return installed.failures.get(STARTUP) or installed.failures.get(COMPILE_CACHE) or why_no_kernels()


def _put(feature: str) -> None:
    if feature in ADAPTERS:
        from serving_ops.integrations.vllm import out_of_tree

        out_of_tree.replace(ADAPTERS[feature])
    else:
        importlib.import_module(f"serving_ops.integrations.vllm.{feature}").install()


def install_all(*, strict: bool) -> None:
    """Install every feature that can be, and keep in `installed.failures` why others cannot.

    Raises RuntimeError at the first that cannot where `strict`.
    """
    installed.failures.clear()
    _install_each(FEATURES, strict=strict)
    if STARTUP in installed.failures:
        guard.warn_off("vLLM", installed.failures[STARTUP])


def install_for(vllm_config: Any, *, strict: bool) -> None:
    """The same for what a model needs beyond that, before vLLM builds its layers and compiles them.

    Where the norms' consumers quantize, vLLM builds its own classes. Where its passes join norms to an all-reduce, it
    builds its own of those that call its IR: the passes do not find our operators.
    """
    from serving_ops.integrations.vllm import fp32_residual, out_of_tree

    if getattr(vllm_config.model_config, "has_inner_state", False):
        _install_each(STATE_SPACE, strict=strict)
    stay = quantization.why_norms_stay(vllm_config) is not None
    joined = joins_norms_to_an_all_reduce(vllm_config)
    out_of_tree.build_ours(lambda adapter: not stay and not (joined and adapter.asks_ir))
    if not stay:
        fp32_residual.install_for(vllm_config)


def joins_norms_to_an_all_reduce(vllm_config: Any) -> bool:
    """Return whether a pass of vLLM's replaces an all-reduce and the norm behind it by one kernel."""
    passes = getattr(getattr(vllm_config, "compilation_config", None), "pass_config", None)
    return any(getattr(passes, name, False) for name in ("fuse_allreduce_rms", "enable_sp"))


def _install_each(features: Iterable[str], *, strict: bool) -> None:
    for feature in features:
        try:
            if not _is_wanted(feature):
                continue
            reason = _why_not(feature)
            if reason is not None:
                raise RuntimeError(reason)
            _put(feature)
        except Exception as error:  # whatever a version of vLLM does differently, the engine must start
            if strict:
                raise guard.strict_error(feature, error) from error
            installed.failures[feature] = guard.reason_of(error)
            _logger.debug("serving_ops: %s is not in place", feature, exc_info=True)
