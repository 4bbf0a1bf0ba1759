"""Where vLLM's models hand on the input of a layer, to a draft model or to the user, no norm overwrites it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("vllm")

from in_process import DEVICE, HIDDEN, rows, survey, vllm_config

from serving_ops.integrations.vllm import features


def gemma_norm(speculation: Any) -> Any:
    """A norm that vLLM builds for a model with this `speculative_config`."""
    from vllm.model_executor.layers.layernorm import GemmaRMSNorm

    config = vllm_config()
    config.speculative_config = speculation
    features.install_for(config, strict=True)
    return GemmaRMSNorm(HIDDEN).to(DEVICE, torch.bfloat16)


def speculation(method: str) -> Any:
    return SimpleNamespace(method=method)


@pytest.mark.parametrize("method", sorted(features.HIDDEN_STATES))
def test_the_input_of_the_first_layer_is_as_it_was(registered: None, in_vllm: Any, method: str) -> None:
    """As a decoder layer of Qwen3-Next, whose residual is at first its input."""
    norm, embeddings = gemma_norm(speculation(method)), rows(3, HIDDEN)
    handed_on = embeddings.clone()
    _, residual = norm(torch.tanh(norm(embeddings)), embeddings)
    assert torch.equal(embeddings, handed_on)
    assert not torch.equal(residual, handed_on)


def test_norms_are_still_ours_there(registered: None, in_vllm: Any) -> None:
    (found,) = survey(torch.nn.ModuleList([gemma_norm(speculation("eagle3"))]))
    assert (found.kind, found.native_because) == ("GemmaRMSNorm", None)


@pytest.mark.parametrize("other", [None, speculation("mtp"), speculation("ngram")])
def test_with_other_methods_the_class_is_ours(registered: None, in_vllm: Any, other: Any) -> None:
    assert type(gemma_norm(other)).__name__ == "ServingOpsGemmaRMSNorm"
