"""Gated delta nets hand their gate on where it lies in the projection's result, of which vLLM 0.25 copies it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("vllm")

from in_process import DEVICE, HIDDEN, rows, vllm_config
from torch import Tensor
from vllm.model_executor.layers.mamba.gdn import qwen_gdn_linear_attn

from serving_ops.integrations.vllm import (
    compile_cache,
    features,
    installed,
    known_code,
    mixer_gate,
    mixer_output,
    startup,
)

TOKENS, HEADS, HEAD_DIM = 5, 2, 128
ROW = HEADS * HEAD_DIM


class QwenGatedDeltaNetAttention(torch.nn.Module):
    """The last step of vLLM 0.25's."""

    def __init__(self) -> None:
        from vllm.model_executor.layers.layernorm import RMSNormGated

        super().__init__()
        self.norm = RMSNormGated(HEAD_DIM, eps=1e-6, norm_before_gate=True, dtype=torch.bfloat16)
        self.projection = torch.nn.Linear(ROW, HIDDEN)
        self.gates: list[Tensor] = []
        self.norm.register_forward_pre_hook(lambda _, given: self.gates.append(given[1]))

    def out_proj(self, x: Tensor) -> tuple[Tensor, None]:
        return self.projection(x), None

    def _output_projection(self, core_attn_out: Tensor, z: Tensor, output: Tensor, num_tokens: int) -> None:
        z_shape_og = z.shape
        core_attn_out = core_attn_out.reshape(-1, core_attn_out.shape[-1])
        z = z.reshape(-1, z.shape[-1])
        core_attn_out = self.norm(core_attn_out, z)
        core_attn_out = core_attn_out.reshape(z_shape_og)
        core_attn_out = core_attn_out.flatten(-2)
        output[:num_tokens], _ = self.out_proj(core_attn_out)


@pytest.fixture
def mixer(registered: None, in_vllm: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """It is taken for vLLM's."""
    monkeypatch.setattr(
        QwenGatedDeltaNetAttention, "__module__", mixer_gate.MIXERS[QwenGatedDeltaNetAttention.__name__]
    )
    return QwenGatedDeltaNetAttention().to(DEVICE, torch.bfloat16).requires_grad_(False)


def _run(mixer: Any, gate: Tensor) -> Tensor:
    output = torch.full((TOKENS, HIDDEN), torch.nan, dtype=torch.bfloat16, device=DEVICE)
    mixer._output_projection(rows(TOKENS, HEADS, HEAD_DIM), gate, output, TOKENS)
    return output


def _gate() -> Tensor:
    """The end of a projection's result."""
    return rows(TOKENS, 3 * ROW)[:, 2 * ROW :].view(TOKENS, HEADS, HEAD_DIM)


def test_the_gate_is_read_where_it_lies_and_the_result_is_vllms(mixer: Any) -> None:
    gate = _gate()
    expected = _run(mixer, gate)
    assert mixer_gate.take([mixer]) == "no copy of the gate of 1 mixers"
    assert torch.equal(_run(mixer, gate), expected)
    copied, in_place = (given.untyped_storage().data_ptr() for given in mixer.gates)
    assert in_place == gate.untyped_storage().data_ptr() != copied


def test_the_layer_around_it_may_still_go_on_without_a_buffer(mixer: Any) -> None:
    gate, kept = _gate(), mixer_output.Kept()
    expected = _run(mixer, gate)
    mixer_gate.take([mixer])
    mixer._output_projection(rows(TOKENS, HEADS, HEAD_DIM), gate, kept, TOKENS)
    assert torch.equal(kept.value, expected)
    assert known_code.names_of(mixer._output_projection) == mixer_gate.STEPS


def test_undo_brings_vllms_method_back(mixer: Any) -> None:
    native = QwenGatedDeltaNetAttention._output_projection
    mixer_gate.take([mixer])
    assert QwenGatedDeltaNetAttention._output_projection is not native
    installed.undo()
    assert QwenGatedDeltaNetAttention._output_projection is native
    assert mixer_gate.IN_PLACE not in vars(mixer)
    assert mixer_gate.mixers_on == []


def test_the_compile_cache_key_says_which_mixers_are_on(mixer: Any) -> None:
    native = compile_cache.compile_key()
    mixer_gate.take([mixer])
    assert compile_cache.compile_key() != native
    mixer_gate.take([])
    assert compile_cache.compile_key() == native


def test_the_start_up_line_counts_the_mixers(mixer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr(startup._logger, "info", lines.append)
    config = vllm_config()
    config.compilation_config.pass_config = SimpleNamespace(enable_qk_norm_rope_fusion=False)
    model = torch.nn.ModuleList([mixer])
    worker = SimpleNamespace(
        get_model=lambda: model, model_runner=SimpleNamespace(), device=DEVICE, vllm_config=config
    )  # fmt: skip
    startup.on_model_loaded(worker, strict=True)
    assert lines[0].endswith("; no copy of the gate of 1 mixers")


def _another_step(mixer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def project(self: Any, core_attn_out: Tensor, z: Tensor, output: Tensor, num_tokens: int) -> None:
        rows = self.norm(core_attn_out.reshape(-1, z.shape[-1]), z.reshape(-1, z.shape[-1]))
        output[:num_tokens], _ = self.out_proj(self.scale(rows).flatten(-2))

    monkeypatch.setattr(QwenGatedDeltaNetAttention, "_output_projection", project)


def _heads_stay_heads(mixer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As since vLLM 0.32."""

    def project(self: Any, core_attn_out: Tensor, z: Tensor) -> Tensor:
        output, _ = self.out_proj(self.norm(core_attn_out, z).flatten(-2))
        return output  # type: ignore[no-any-return]

    monkeypatch.setattr(QwenGatedDeltaNetAttention, "_output_projection", project)


def _without_the_method(mixer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(QwenGatedDeltaNetAttention, "_output_projection")


def _another_class(mixer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(QwenGatedDeltaNetAttention, "__module__", "vllm.of_another_plugin")


def _norm_of_another_plugin(mixer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    mixer.norm = torch.nn.Identity()


def _norm_that_stays_vllms(mixer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    mixer.norm.stay_native = True


def _op_left_out(mixer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVING_OPS", "rms_norm,fused_add_rms_norm")


def _prewarm_failed(mixer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installed, "given_back", {"rms_norm_gated"})


def _no_key(mixer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(installed.failures, features.COMPILE_CACHE, "keys made otherwise")


@pytest.mark.parametrize(
    "change",
    [
        *(_another_step, _heads_stay_heads, _without_the_method, _another_class, _norm_of_another_plugin),
        *(_norm_that_stays_vllms, _op_left_out, _prewarm_failed, _no_key),
    ],
)
def test_otherwise_the_method_stays_vllms(mixer: Any, change: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    change(mixer, monkeypatch)
    native = vars(QwenGatedDeltaNetAttention).get("_output_projection")
    assert mixer_gate.take([mixer]) is None
    assert vars(QwenGatedDeltaNetAttention).get("_output_projection") is native


def test_vllms_own_method_is_known_where_it_makes_rows_of_the_gate() -> None:
    own = qwen_gdn_linear_attn.QwenGatedDeltaNetAttention._output_projection
    known = known_code.names_of(own) == mixer_gate.STEPS and known_code.parameters_of(own) == mixer_gate.PARAMETERS
    assert known == ("reshape" in known_code.names_of(own))
