"""Where vLLM's model hands on the input of its first layer, no norm overwrites it, and the start-up line says why."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("vllm")

from in_process import DEVICE, HIDDEN, rows, vllm_config

from serving_ops.integrations.common.norm_classes import NORMS
from serving_ops.integrations.vllm import features, hidden_states, installed, startup

LINE = f"native: 2 %s ({hidden_states.HANDED_ON})"


def model(name: str, handed_on: tuple[int, ...]) -> Any:
    """Two norms of one of vLLM's classes, in a model that hands on the input of these layers."""
    from vllm.model_executor.layers import layernorm
    from vllm.model_executor.models.interfaces import EagleModelMixin

    class Model(EagleModelMixin, torch.nn.Module):
        aux_hidden_state_layers = handed_on

    built = Model()
    built.norms = torch.nn.ModuleList([getattr(layernorm, name)(HIDDEN) for _ in range(2)])
    return built.to(DEVICE, torch.bfloat16)


def loaded(built: Any, caplog: pytest.LogCaptureFixture) -> str:
    """The start-up line of the model."""
    worker = SimpleNamespace(
        get_model=lambda: built, model_runner=SimpleNamespace(), device=DEVICE, vllm_config=vllm_config()
    )
    caplog.clear()
    with caplog.at_level(logging.INFO, "vllm.serving_ops"):
        startup.on_model_loaded(worker, strict=True)
    return caplog.messages[-1]


@pytest.fixture
def heard(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
    return caplog


@pytest.mark.parametrize("name", ["RMSNorm", "GemmaRMSNorm"])
def test_the_input_of_the_first_layer_is_as_it_was(
    registered: None, in_vllm: Any, heard: pytest.LogCaptureFixture, name: str
) -> None:
    """As in a decoder layer, whose residual is at first its input."""
    built = model(name, (0, 2))
    assert LINE % name in loaded(built, heard)
    embeddings = rows(3, HIDDEN)
    (handed_on,), copy = built._maybe_add_hidden_state([], 0, embeddings, None), embeddings.clone()
    first, second = built.norms
    _, residual = second.forward_native(torch.tanh(first.forward_native(embeddings)), embeddings)
    assert torch.equal(handed_on, copy)
    assert not torch.equal(residual, copy)


def test_no_norm_of_it_quantizes_or_is_fused(registered: None, in_vllm: Any, heard: pytest.LogCaptureFixture) -> None:
    assert features.ops() >= {*NORMS}
    loaded(model("RMSNorm", (0,)), heard)
    assert features.ops().isdisjoint(NORMS)


@pytest.mark.parametrize("handed_on", [(), (1, 2)])
@pytest.mark.parametrize("name", ["RMSNorm", "GemmaRMSNorm"])
def test_norms_are_ours_where_only_the_input_of_later_layers_is_handed_on(
    registered: None, in_vllm: Any, heard: pytest.LogCaptureFixture, name: str, handed_on: tuple[int, ...]
) -> None:
    assert f"on for 2 of 2 {name}" in loaded(model(name, handed_on), heard)
    assert not installed.given_back
