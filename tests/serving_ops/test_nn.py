"""The norms as modules, and in Hugging Face models: same parameters, gradients no worse than eager's, same training."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from numerics import rows
from torch import Tensor

import serving_ops
from serving_ops import nn, reference

MODELS = ("dense", "hybrid")
SLACK = 1.1
"""Ratio of errors of a whole model's gradients; eager's own differ by this much from one seed to the next."""

NORMS = {
    # input and post-attention norm and q and k norm of two layers, the last norm
    "dense": {"Qwen3RMSNorm": 9},
    # one layer of each kind: four norms of hidden states, q and k, the last norm; the gated one
    "hybrid": {"Qwen3NextRMSNorm": 7, "Qwen3NextRMSNormGated": 1},
}


@pytest.fixture(autouse=True)
def transformers_without_fla(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where flash-linear-attention is installed, transformers hands it CPU tensors too, and some GPUs it refuses."""
    monkeypatch.setitem(sys.modules, "fla", None)


def build(name: str, dtype: torch.dtype) -> Any:
    """A model of two layers with random weights, norms included; the same for every dtype."""
    transformers = pytest.importorskip("transformers")
    common = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "head_dim": 16}
    common |= {"num_key_value_heads": 1, "num_hidden_layers": 2, "max_position_embeddings": 64}
    if name == "dense":
        config = transformers.Qwen3Config(**common)
    else:
        heads = {"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 16}
        kinds = {"layer_types": ["linear_attention", "full_attention"], "mlp_only_layers": [0, 1]}
        config = transformers.Qwen3NextConfig(**common, **heads, **kinds, linear_value_head_dim=16)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "norm" in key:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.to(dtype)


@pytest.mark.parametrize("kind", [nn.RMSNorm, nn.GemmaRMSNorm, nn.RMSNormGated])
@pytest.mark.parametrize("eps", [float("nan"), float("inf"), -1e-6])
def test_an_eps_that_the_ops_refuse_is_refused_when_the_module_is_made(kind: type, eps: float) -> None:
    with pytest.raises(RuntimeError, match=r"serving_ops: eps is .*: it must be finite in float32, and at least 0"):
        kind(64, eps=eps)


def tokens(count: int = 24, device: torch.device | None = None) -> Tensor:
    """Two sequences in which each token tells the next."""
    return torch.stack([torch.arange(start, start + count) * 5 % 64 for start in (1, 7)]).to(device)


@pytest.mark.parametrize("name", MODELS)
def test_a_models_norms_are_replaced_around_the_very_same_parameters(name: str) -> None:
    model = build(name, torch.float32)
    before = dict(model.named_parameters())
    expected = model(tokens()).logits
    assert nn.replace_norms(model) == (NORMS[name], {})
    after = dict(model.named_parameters())
    assert list(after) == list(before)
    assert all(after[key] is before[key] for key in before)
    torch.testing.assert_close(model(tokens()).logits, expected)
    assert nn.replace_norms(model) == ({}, {})


def one_norm() -> tuple[torch.nn.Sequential, Any]:
    """A model of one of transformers' norms."""
    modeling = pytest.importorskip("transformers.models.qwen3.modeling_qwen3")
    norm = modeling.Qwen3RMSNorm(8, eps=1e-5)
    return torch.nn.Sequential(norm), norm


def replaced_alone(model: torch.nn.Module) -> None:
    assert nn.replace_norms(model) == ({"Qwen3RMSNorm": 1}, {})


def test_hooks_on_a_norm_survive_and_their_handles_remove_them() -> None:
    model, norm = one_norm()
    called: list[str] = []

    def note(kind: str) -> Callable[..., None]:
        return lambda *_, **__: called.append(kind)

    handles = [
        norm.register_forward_pre_hook(note("forward pre")),
        norm.register_forward_hook(note("forward")),
        norm.register_full_backward_pre_hook(note("backward pre")),
        norm.register_full_backward_hook(note("backward")),
        norm.register_state_dict_pre_hook(note("state_dict pre")),
        norm.register_state_dict_post_hook(note("state_dict")),
        norm.register_load_state_dict_pre_hook(note("load_state_dict pre")),
        norm.register_load_state_dict_post_hook(note("load_state_dict")),
    ]

    def use() -> list[str]:
        called.clear()
        model(torch.ones(2, 8, requires_grad=True)).sum().backward()
        model.load_state_dict(model.state_dict())
        return sorted(called)

    before = use()
    assert len(before) == len(handles)
    replaced_alone(model)
    del norm
    assert use() == before
    for handle in handles:
        handle.remove()
    assert use() == []


def test_what_a_norm_holds_besides_stays() -> None:
    model, norm = one_norm()
    norm.note = "kept"
    norm.weight.requires_grad_(False)
    norm.eval()
    replaced_alone(model)
    assert isinstance(model[0], nn.RMSNorm)
    assert (model[0].note, model[0].variance_epsilon, model[0].eps) == ("kept", 1e-5, 1e-5)
    assert not model[0].weight.requires_grad
    assert not model[0].training


def left_alone(model: torch.nn.Module, part_of_reason: str) -> None:
    norm = model[0]  # type: ignore[index]
    kind = type(norm)
    replaced, left = nn.replace_norms(model)
    assert replaced == {}
    assert list(left) == ["0"]
    assert part_of_reason in left["0"]
    assert type(norm) is kind


@pytest.mark.parametrize("kind", [torch.nn.LayerNorm, torch.nn.RMSNorm])
def test_a_norm_of_an_unknown_class_is_left_alone(kind: type[torch.nn.Module]) -> None:
    left_alone(torch.nn.Sequential(kind(8)), kind.__name__)


@pytest.mark.parametrize("name", ["LlamaRMSNorm", "GemmaRMSNorm"])
def test_a_models_own_norm_that_has_the_name_of_a_known_class_is_left_alone(name: str) -> None:
    own = type(name, (torch.nn.Module,), {})()
    own.weight = torch.nn.Parameter(torch.ones(8))
    own.eps = 1e-6
    left_alone(torch.nn.Sequential(own), f"{__name__}.{name}")


def test_a_subclass_of_a_known_norm_that_multiplies_by_1_plus_w_is_left_alone() -> None:
    _, norm = one_norm()

    class Qwen3RMSNorm(type(norm)):  # type: ignore[misc]
        def forward(self, hidden_states: Tensor) -> Tensor:
            return reference.rms_norm(hidden_states, self.weight, weight_offset=1.0)

    left_alone(torch.nn.Sequential(Qwen3RMSNorm(8)), "is not known")


def test_a_norm_with_a_bias_is_left_alone() -> None:
    model, norm = one_norm()
    norm.bias = torch.nn.Parameter(torch.full((8,), 0.5))
    left_alone(model, "weight, bias")


def test_a_norm_whose_instance_overrides_forward_is_left_alone() -> None:
    model, norm = one_norm()
    norm.forward = lambda x: x + 1
    left_alone(model, "forward is set on the instance")


def test_a_norm_whose_class_was_patched_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model, norm = one_norm()
    monkeypatch.setattr(type(norm), "forward", lambda self, x: x + 1)
    left_alone(model, f"replaced by one of {__name__}")


def _gradients(model: Any) -> Tensor:
    words = tokens(device=model.device)
    model(words, labels=words).loss.backward()
    return torch.cat([parameter.grad.double().cpu().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("name", MODELS)
def test_a_models_gradients_are_as_close_to_float64s_as_eagers(name: str, device: torch.device) -> None:
    exact = _gradients(build(name, torch.float64))
    eager = build(name, torch.bfloat16).to(device)
    ours = copy.deepcopy(eager)
    nn.replace_norms(ours)
    errors = [float((_gradients(model) - exact).norm() / exact.norm()) for model in (eager, ours)]
    print(f"\n{name}: relative error of the gradients, eager {errors[0]:.4f}, ours {errors[1]:.4f}")
    assert errors[1] <= SLACK * errors[0]


def _train(model: Any, steps: int) -> list[float]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    words = tokens(device=model.device)
    for _ in range(steps):
        loss = model(words, labels=words).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", MODELS)
def test_a_model_learns_as_it_does_with_eager_norms(name: str, device: torch.device) -> None:
    eager = build(name, torch.float32).to(device)
    ours = copy.deepcopy(eager)
    nn.replace_norms(ours)
    theirs, mine = _train(eager, 60), _train(ours, 60)
    assert theirs[-1] < 0.1 * theirs[0]
    assert mine[-1] == pytest.approx(theirs[-1], rel=0.02)


MODULES: dict[str, tuple[Callable[[], torch.nn.Module], float]] = {
    "RMSNorm": (lambda: nn.RMSNorm(64, eps=1e-5), 0.0),
    "GemmaRMSNorm": (lambda: nn.GemmaRMSNorm(64, eps=1e-5), 1.0),
}


@pytest.mark.parametrize("name", MODULES)
def test_a_module_starts_as_the_norm_without_a_weight_and_computes_the_op(name: str) -> None:
    make, offset = MODULES[name]
    module, x, residual = make(), rows((5, 64), torch.float32, seed=1), rows((5, 64), torch.float32, seed=2)
    assert list(module.state_dict()) == ["weight"]
    torch.testing.assert_close(module(x), reference.rms_norm(x, None, 1e-5))
    with torch.no_grad():
        module.weight.copy_(rows((64,), torch.float32, seed=3))
        out, total = module(x, residual)
        expected = serving_ops.add_rms_norm(x, residual, module.weight, 1e-5, weight_offset=offset)
    assert torch.equal(out, expected[0])
    assert torch.equal(total, expected[1])


def test_the_gated_module_computes_the_op() -> None:
    module, x, z = nn.RMSNormGated(64), rows((5, 64), torch.float32, seed=1), rows((5, 64), torch.float32, seed=2)
    assert torch.equal(module(x, z), serving_ops.rms_norm_gated(x, z, module.weight))
    assert torch.equal(module(x), serving_ops.rms_norm_gated(x, None, module.weight))


@pytest.mark.parametrize("name", MODULES)
def test_a_module_from_the_meta_device_is_reset_to_the_norm_without_a_weight(name: str) -> None:
    make, _ = MODULES[name]
    with torch.device("meta"):
        module = make()
    module.to_empty(device="cpu")
    with torch.no_grad():
        module.weight.fill_(float("nan"))
    module.reset_parameters()
    x = rows((5, 64), torch.float32, seed=1)
    torch.testing.assert_close(module(x), reference.rms_norm(x, None, 1e-5))


class EveryModule(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.plain, self.from_one, self.gated = nn.RMSNorm(64), nn.GemmaRMSNorm(64), nn.RMSNormGated(64)

    def forward(self, x: Tensor) -> Tensor:
        h, total = self.plain(self.from_one(x), x)
        return self.gated(h, total)


def test_torch_fx_traces_the_modules_and_the_trace_trains() -> None:
    module, x = EveryModule(), rows((5, 64), torch.float32, seed=1)
    traced = torch.fx.symbolic_trace(module)
    expected = torch.autograd.grad(module(x).square().sum(), list(module.parameters()))
    got = torch.autograd.grad(traced(x).square().sum(), list(module.parameters()))
    assert torch.equal(traced(x), module(x))
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
