"""Decoder layers of hybrids go on with their mixer's result itself, where vLLM 0.25 copies it into a buffer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("vllm")

from in_process import DEVICE, HIDDEN, rows, vllm_config
from torch import Tensor
from vllm.model_executor.layers.mamba.gdn import qwen_gdn_linear_attn
from vllm.model_executor.models import qwen3_next

from serving_ops.integrations.vllm import compile_cache, features, installed, known_code, mixer_output, startup

TOKENS = 5


class Norm(torch.nn.Module):
    """In the place of vLLM's: the sum, and twice the sum."""

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Any:
        return x * 2 if residual is None else ((x + residual) * 2, x + residual)


class QwenGatedDeltaNetAttention(torch.nn.Module):
    """Of vLLM 0.25, without its core: the output is a buffer that it writes."""

    def __init__(self) -> None:
        super().__init__()
        self.out_proj = torch.nn.Linear(HIDDEN, HIDDEN)
        self._forward_method = self.forward_cuda

    def forward(self, hidden_states: Tensor, output: Tensor) -> None:
        self._forward_method(hidden_states, output)

    def forward_cuda(self, hidden_states: Tensor, output: Tensor) -> None:
        self._output_projection(hidden_states, output, hidden_states.size(0))

    def _output_projection(self, core: Tensor, output: Tensor, num_tokens: int) -> None:
        output[:num_tokens], _ = self.out_proj(core), None


class Qwen3NextAttention(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.o_proj = torch.nn.Linear(HIDDEN, HIDDEN)

    def forward(self, positions: Tensor, output: Tensor, hidden_states: Tensor) -> None:
        output[:], _ = self.o_proj(hidden_states * positions.reshape(-1, 1)), None


class Qwen3NextDecoderLayer(torch.nn.Module):
    """Of vLLM 0.25, without layer scales."""

    def __init__(self, layer_type: str) -> None:
        super().__init__()
        self.layer_type, self.layer_scale = layer_type, False
        self.input_layernorm, self.post_attention_layernorm = Norm(), Norm()
        self.mlp = torch.nn.Linear(HIDDEN, HIDDEN)
        if layer_type == "linear_attention":
            self.linear_attn = QwenGatedDeltaNetAttention()
        else:
            self.self_attn = Qwen3NextAttention()

    def forward(
        self, hidden_states: Tensor, residual: Tensor | None, positions: Any = None, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        if residual is None:
            residual, hidden_states = hidden_states, self.input_layernorm(hidden_states)
        else:
            hidden_states, residual = self.input_layernorm(hidden_states, residual)
        buffer = torch.empty_like(hidden_states)
        if self.layer_type == "linear_attention":
            self.linear_attn(hidden_states=hidden_states, output=buffer)
        else:
            self.self_attn(hidden_states=hidden_states, output=buffer, positions=positions)
        hidden_states, residual = self.post_attention_layernorm(buffer, residual)
        return self.mlp(hidden_states), residual


KINDS = ("linear_attention", "full_attention")


@pytest.fixture(autouse=True)
def known(registered: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """These classes are taken for vLLM's, and the layer runs vLLM's own forward where that has the buffer."""
    for cls in (Qwen3NextDecoderLayer, QwenGatedDeltaNetAttention, Qwen3NextAttention):
        known = mixer_output.LAYERS if cls is Qwen3NextDecoderLayer else mixer_output.MIXERS
        monkeypatch.setattr(cls, "__module__", known[cls.__name__])
    own = qwen3_next.Qwen3NextDecoderLayer.forward
    if mixer_output.BUFFER in own.__code__.co_names:
        monkeypatch.setattr(Qwen3NextDecoderLayer, "forward", own)


def _config(**passes: bool) -> Any:
    config = vllm_config()
    config.compilation_config = SimpleNamespace(pass_config=SimpleNamespace(**passes))
    return config


def _layer(kind: str) -> Any:
    return Qwen3NextDecoderLayer(kind).to(DEVICE, torch.bfloat16).requires_grad_(False)


def _take(*layers: torch.nn.Module, **passes: bool) -> str | None:
    return mixer_output.take([torch.nn.ModuleList(layers)], _config(**passes))


def _run(layer: Any, *, first: bool) -> Any:
    positions = torch.arange(TOKENS, device=DEVICE)
    x = rows(TOKENS, HIDDEN)
    return layer(positions=positions, hidden_states=x, residual=None if first else x + 1)


def _called(layer: Any, *, first: bool) -> list[str]:
    """What the graph of a layer calls."""
    graphs: list[Any] = []

    def keep(graph: Any, inputs: Any) -> Any:
        graphs.append(graph.graph)
        return graph

    torch._dynamo.reset()
    with torch.inference_mode():
        _run(torch.compile(layer, backend=keep, fullgraph=True), first=first)
    (graph,) = graphs
    return [getattr(node.target, "__name__", str(node.target)) for node in graph.nodes if "call" in node.op]


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_gives_what_vllms_forward_gives(kind: str, first: bool) -> None:
    layer = _layer(kind)
    expected = _run(layer, first=first)
    assert _take(layer) == "no copy of the result of 1 mixers"
    assert all(map(torch.equal, _run(layer, first=first), expected))


@pytest.mark.parametrize("kind", KINDS)
def test_its_graph_has_neither_buffer_nor_copy(kind: str) -> None:
    layer = _layer(kind)
    assert {"empty_like", "setitem"} <= set(_called(layer, first=False))
    _take(layer)
    assert not {"empty_like", "setitem"} & set(_called(layer, first=False))


def test_undo_brings_vllms_forward_back() -> None:
    layer = _layer("linear_attention")
    native = Qwen3NextDecoderLayer.forward
    _take(layer)
    assert Qwen3NextDecoderLayer.forward is not native
    installed.undo()
    assert Qwen3NextDecoderLayer.forward is native
    assert mixer_output.WITHOUT not in vars(layer)
    assert mixer_output.layers_on == []


def test_the_compile_cache_key_says_which_layers_are_on() -> None:
    native = compile_cache.compile_key()
    _take(_layer("linear_attention"))
    assert compile_cache.compile_key() != native
    _take()
    assert compile_cache.compile_key() == native


def _scale(layer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    layer.layer_scale = True


def _step_in_the_layer(layer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(self: Any, hidden_states: Tensor, residual: Any, positions: Any = None) -> Any:
        return self.mlp(self.gate(torch.empty_like(hidden_states))), residual

    monkeypatch.setattr(Qwen3NextDecoderLayer, "forward", forward)


def _argument_of_the_layer(layer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(self: Any, hidden_states: Tensor, residual: Any, positions: Any = None, scale: float = 1.0) -> Any:
        return self.mlp(torch.empty_like(hidden_states)) * scale, residual

    monkeypatch.setattr(Qwen3NextDecoderLayer, "forward", forward)


def _no_buffer(layer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(self: Any, hidden_states: Tensor, residual: Any, positions: Any = None) -> Any:
        return self.mlp(self.linear_attn(hidden_states)), residual

    monkeypatch.setattr(Qwen3NextDecoderLayer, "forward", forward)


def _step_in_the_mixer(layer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def forward_cuda(hidden_states: Tensor, output: Tensor) -> None:
        output.copy_(hidden_states)

    layer.linear_attn._forward_method = forward_cuda


def _no_type(layer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    del layer.layer_type


def _another_layer(layer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Qwen3NextDecoderLayer, "__module__", "vllm.of_another_plugin")


def _another_mixer(layer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(QwenGatedDeltaNetAttention, "__module__", "vllm.of_another_plugin")


@pytest.mark.parametrize(
    "change",
    [
        *(_scale, _step_in_the_layer, _argument_of_the_layer, _no_buffer),
        *(_step_in_the_mixer, _no_type, _another_layer, _another_mixer),
    ],
)
def test_a_layer_with_another_step_stays_vllms(change: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = _layer("linear_attention")
    change(layer, monkeypatch)
    native = Qwen3NextDecoderLayer.forward
    assert _take(layer) is None
    assert Qwen3NextDecoderLayer.forward is native


def test_a_mixer_that_our_own_code_stands_in_for_counts_as_vllms() -> None:
    """`qk_norm_rope_layer` wraps the forward of attention layers."""
    layer = _layer("full_attention")

    def asking_for_more(own: Any) -> Any:
        return lambda self, **arguments: own(self, **arguments) if vars(self) else None

    installed.wrap(Qwen3NextAttention, "forward", asking_for_more)
    assert _take(layer) == "no copy of the result of 1 mixers"


def test_it_stays_off_without_our_norm_behind_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVING_OPS", "rms_norm,rms_norm_gated")
    assert _take(_layer("linear_attention")) is None


def test_it_stays_off_where_the_prewarm_of_our_norm_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installed, "given_back", {"fused_add_rms_norm"})
    assert _take(_layer("linear_attention")) is None


def test_it_stays_off_without_our_part_of_the_compile_cache_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(installed.failures, features.COMPILE_CACHE, "keys made otherwise")
    assert _take(_layer("linear_attention")) is None


@pytest.mark.parametrize("name", ["fuse_allreduce_rms", "enable_sp"])
def test_it_stays_off_where_vllm_joins_norms_to_an_all_reduce(name: str) -> None:
    assert _take(_layer("linear_attention"), **{name: True}) is None


def test_the_start_up_line_counts_the_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr(startup._logger, "info", lines.append)
    config = _config(enable_qk_norm_rope_fusion=False)
    model = torch.nn.ModuleList(map(_layer, KINDS))
    worker = SimpleNamespace(
        get_model=lambda: model, model_runner=SimpleNamespace(), device=DEVICE, vllm_config=config
    )  # fmt: skip
    startup.on_model_loaded(worker, strict=True)
    assert lines[0].endswith("; no copy of the result of 2 mixers")


def test_vllms_own_layers_are_known_where_they_have_a_buffer() -> None:
    names = known_code.names_of(qwen3_next.Qwen3NextDecoderLayer.forward)
    mixer = qwen_gdn_linear_attn.QwenGatedDeltaNetAttention
    methods = (mixer.forward, mixer.forward_cuda, mixer.forward_cpu, mixer._output_projection)
    of_mixers = set().union(*map(known_code.names_of, (*methods, qwen3_next.Qwen3NextAttention.forward)))
    known = names <= mixer_output.STEPS and of_mixers <= mixer_output.MIXER_STEPS
    assert known == (mixer_output.BUFFER in names)
