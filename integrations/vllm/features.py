"""What the plugin puts into vLLM, in order, and what kept a part of it out."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from typing import cast

from serving_ops import cpu, support

_logger = logging.getLogger("vllm.serving_ops")

STARTUP = "startup"
COMPILE_CACHE = "compile_cache"
IR_PROVIDERS = "ir_providers"
PRIORITY = "priority"
RMS_NORM_GATED = "rms_norm_gated"
GEMMA_RMS_NORM = "gemma_rms_norm"

FEATURES = (STARTUP, COMPILE_CACHE, IR_PROVIDERS, PRIORITY, RMS_NORM_GATED, GEMMA_RMS_NORM)
"""Modules of this package, each with an `install()` that may be called again and raises where it cannot.

The start-up report comes first: it tells what became of the others. The cache key comes before what changes
compiled code: without it vLLM would reuse artifacts compiled with other operators.
"""

CPU_ALONE = {GEMMA_RMS_NORM}
"""Features measured to gain on CPU, and on CUDA not measured: there vLLM's own class stays, on our IR providers."""

failures: dict[str, str] = {}
"""Feature -> why it is not in place, in this process."""

native_ops: set[str] = set()
"""Operators given back to vLLM in this process after their prewarm failed."""


def why_no_kernels() -> str | None:
    """Why this platform's norms cannot run on kernels of ours at all, or None."""
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        return cpu.why_missing()
    if current_platform.is_cuda():
        return support.no_triton()
    return f"no kernels for {type(current_platform).__name__}"


def here() -> tuple[str, ...]:
    """The features for this platform."""
    from vllm.platforms import current_platform

    return tuple(feature for feature in FEATURES if feature not in CPU_ALONE or current_platform.is_cpu())


def _load(feature: str) -> Callable[[], None]:
    return cast(Callable[[], None], importlib.import_module(f"serving_ops.integrations.vllm.{feature}").install)


def _install(feature: str) -> None:
    reason = None if feature == STARTUP else failures.get(COMPILE_CACHE) or why_no_kernels()
    if reason is not None:
        raise RuntimeError(reason)
    _load(feature)()


def install_all(*, strict: bool) -> None:
    """Install every feature that can be, and keep in `failures` why others cannot.

    Raises RuntimeError at the first that cannot where `strict`.
    """
    failures.clear()
    for feature in here():
        try:
            _install(feature)
        except Exception as error:  # whatever a version of vLLM does differently, the engine must start
            reason = str(error) or type(error).__name__
            if strict:
                raise RuntimeError(f"SERVING_OPS=strict: {feature}: {reason}") from error
            failures[feature] = reason
            _logger.debug("serving_ops: %s is not in place", feature, exc_info=True)
    if STARTUP in failures:
        _logger.warning("serving_ops cannot report at start-up: %s", failures[STARTUP])
