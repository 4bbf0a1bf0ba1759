"""Log one line per worker process once its model is loaded: what runs on serving_ops, and why the rest does not.

vLLM has no hook for plugins between loading and warm-up, so we wrap each worker's `load_model` when the worker is
created. What only this model needs is installed before loading, and the line is logged after it. At that time, on both
devices and in both modes, the layers exist, nothing is compiled or captured, and memory is not profiled yet."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch

from serving_ops import settings
from serving_ops.integrations.common import guard, rope_text
from serving_ops.integrations.common.norm_classes import NORMS
from serving_ops.integrations.common.norm_layers import Outcome, after_failures, describe, prewarm_layers
from serving_ops.integrations.vllm import (
    block_product,
    cache_write,
    features,
    hidden_states,
    installed,
    layers,
    mixer_gate,
    mixer_output,
    norm_pairs,
    priority,
    qk_norm_rope_layer,
    quant_fusion,
    quantized_pairs,
    token_pass,
)
from serving_ops.integrations.vllm.layers import NormLayer

_logger = logging.getLogger("vllm.serving_ops")


def install() -> None:
    """Have every worker of this process report after it has loaded its model.

    Raises RuntimeError where workers are not what the report needs.
    """
    from vllm.v1.worker.worker_base import WorkerBase

    for method in ("load_model", "get_model"):
        if not callable(getattr(WorkerBase, method, None)):
            raise RuntimeError(f"WorkerBase has no {method}")
    installed.wrap(WorkerBase, "__init__", _watching)


def _watching(init: Any) -> Any:
    @functools.wraps(init)
    def init_and_watch(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        self.load_model = _then_report(self, self.load_model)

    return init_and_watch


def _then_report(worker: Any, load_model: Any) -> Any:
    @functools.wraps(load_model)
    def load_and_report(*args: Any, **kwargs: Any) -> Any:
        strict = settings.mode() == "strict"
        with guard.unless_strict("vLLM", "prepare for the model"):
            features.install_for(worker.vllm_config, strict=strict)
        result = load_model(*args, **kwargs)
        with guard.unless_strict("vLLM", "look at the model, whose norms stay vLLM's own"):
            try:
                on_model_loaded(worker, strict=strict)
            except Exception:  # this vLLM's layers or models are not what ours were written for
                give_back(settings.OPS)
                raise
        return result

    return load_and_report


def on_model_loaded(worker: Any, *, strict: bool) -> None:
    """Prewarm the model's norms and log the line. Raises RuntimeError in strict mode if a layer fell back."""
    define_operators()
    models = list(layers.models_of(worker))
    if hidden_states.why_norms_stay(models) is not None:
        give_back(NORMS)
    found = survey(models, worker.vllm_config, worker.device)
    outcome = prewarm(found)
    if qk_norm_rope_layer.OP in outcome.failed:  # its layers call their norms again
        found = survey(models, worker.vllm_config, worker.device)
        outcome = prewarm(found)
    found = [after_failures(layer, outcome) for layer in found]
    device = str(worker.device)
    if strict and any(layer.fell_back() for layer in found):
        raise RuntimeError(f"{guard.STRICT} {describe(found, device, outcome.summary)}")
    qk_norm_rope_layer.take(found, worker.vllm_config)
    # Last: what raises before leaves all norms to vLLM.
    _logger.info(describe(found, device, outcome.summary, *_beside_norms(models, found, worker)))


def define_operators() -> None:
    """Define what compiled graphs call, for every model: vLLM may take an older graph from its cache."""
    for module in (rope_text, cache_write, quant_fusion, block_product):
        module.define()


def survey(models: Sequence[torch.nn.Module], vllm_config: Any, device: torch.device) -> list[NormLayer]:
    """Return the norm layers of the models, and attention layers instead of the q and k norms that they fuse."""
    attentions: list[qk_norm_rope_layer.AttentionLayer] = []
    with guard.unless_strict("vLLM", "look at attention layers, whose q and k stay vLLM's own"):
        attentions = qk_norm_rope_layer.survey(models, vllm_config, device)
    fused = {norm for layer in attentions if layer.native_because is None for norm in layer.norms()}
    return [*layers.survey(models, vllm_config, device, without=fused), *attentions]


def _beside_norms(models: Sequence[Any], found: Sequence[NormLayer], worker: Any) -> Iterator[str]:
    """Take norms that are fused with a quantization, or might be, and copies before norms; yields phrases for the
    line."""
    config = worker.vllm_config
    steps = {
        "take its fused norms": lambda: token_pass.take(models, found, config),
        "have its norms quantize": lambda: quantized_pairs.take(models, config, worker.device),
        "leave out the copies before its norms": lambda: mixer_output.take(models, config),
        "leave out the copies before its gated norms": lambda: mixer_gate.take(models),
        "pair its norms": lambda: norm_pairs.take(found, config),
    }
    for what, take in steps.items():
        with guard.unless_strict("vLLM", what):
            phrase = take()
            if phrase is not None:
                yield phrase


def prewarm(found: Sequence[NormLayer]) -> Outcome:
    """Prewarm what the layers that are on may call; an operator that fails goes back to vLLM in this process."""
    outcome = prewarm_layers(found, _logger)
    give_back(outcome.failed)
    return outcome


def give_back(ops: Iterable[str]) -> None:
    """Have vLLM's own code run in this process wherever it would call these operators."""
    from serving_ops.integrations.vllm import out_of_tree

    given_back = frozenset(ops)
    installed.given_back.update(given_back)
    out_of_tree.give_back(given_back)
    if features.why_no_providers() is None:
        priority.drop(given_back.intersection(priority.OPS))
