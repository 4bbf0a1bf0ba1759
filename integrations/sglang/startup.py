"""Log one line per scheduler process once its model is loaded: what runs on serving_ops, and why the rest does not.

A draft model is loaded later and has another line. In every version, loading ends before SGLang captures graphs and
distributes memory. The layers exist by then, and each is switched over (see `switch`), so the line counts the layers
that were switched."""

from __future__ import annotations

import inspect
import logging
import pkgutil
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from serving_ops import settings
from serving_ops.integrations.common import guard
from serving_ops.integrations.common.norm_layers import after_failures, describe, prewarm_layers
from serving_ops.integrations.sglang import layers, switch
from serving_ops.integrations.sglang.layers import NormLayer

TARGET = "sglang.srt.model_executor.model_runner.ModelRunner.load_model"

_logger = logging.getLogger("sglang.serving_ops")


LOADING = "serving_ops_looks_when_loaded"
"""The attribute that marks a model runner while it loads."""


def install() -> None:
    """Hook the loading of models.

    Raises ImportError where this SGLang takes no hooks, RuntimeError or AttributeError where it loads models elsewhere:
    SGLang itself would only log that, and go on without the hook.
    """
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    if not inspect.isfunction(pkgutil.resolve_name(TARGET)):
        raise RuntimeError(f"{TARGET} is not a method")
    HookRegistry.register(TARGET, load_then_report, HookType.AROUND)


def load_then_report(load_model: Callable[..., Any], runner: Any, *args: Any, **kwargs: Any) -> Any:
    """Around `ModelRunner.load_model`. Raises RuntimeError in strict mode if a layer fell back or an error kept all."""
    if getattr(runner, LOADING, False):  # hooked twice, by the variable and by the flag: the outer one looks
        return load_model(runner, *args, **kwargs)
    setattr(runner, LOADING, True)
    try:
        result = load_model(runner, *args, **kwargs)
    finally:
        delattr(runner, LOADING)
    try:
        on_model_loaded(runner)
    except Exception as error:  # this SGLang's layers or models are not what ours were written for
        switch.off(runner.model)
        if settings.mode() == "strict":
            raise guard.strict_error("could not take the model's norms", error) from error
        guard.warn_off("SGLang", guard.reason_of(error))
        _logger.debug("serving_ops: details", exc_info=True)
    return result


def _quantized_apart(found: Sequence[NormLayer]) -> list[str]:
    """Return the start-up line's part on norms whose result is quantized by another kernel."""
    reasons = Counter(layer.quantized_apart for layer in found if layer.quantized_apart is not None)
    return ["quantized apart: " + ", ".join(f"{count} ({why})" for why, count in reasons.items())] if reasons else []


def on_model_loaded(runner: Any) -> None:
    """Switch the model's norms over, and log the line. Raises RuntimeError in strict mode if a layer fell back.

    Does nothing if the mode is off: the flag may switch it off after the variable had the loading hooked.
    """
    if settings.mode() == "off":
        return
    found = layers.survey(runner)
    outcome = prewarm_layers(found, _logger)
    found = [after_failures(layer, outcome) for layer in found]
    model = ", draft model" if getattr(runner, "is_draft_worker", False) else ""
    line = describe(found, f"{runner.device}{model}", *_quantized_apart(found), outcome.summary)
    ours = [layer for layer in found if layer.adapter is not None or layer.specs]
    fell_back = [layer for layer in ours if layer.native_because not in (None, *layers.BY_CHOICE)]
    if settings.mode() == "strict" and fell_back:
        raise RuntimeError(f"{guard.STRICT} {line}")
    for layer in found:
        if layer.native_because is None:
            switch.on(layer)
    _logger.info(line)
