"""q and k norms with the rotary embedding in vLLM's attention layers: which layers, the same numbers, no copies."""

from __future__ import annotations

import functools
import gc
import importlib
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("vllm")

from in_process import DEVICE, HEAD, HIDDEN, rows, vllm_config
from torch import Tensor
from torch._inductor.utils import run_and_get_code

import serving_ops
from serving_ops import PrewarmReport, counters, extension
from serving_ops.integrations.common import rope_text
from serving_ops.integrations.common.norm_classes import rope_options
from serving_ops.integrations.vllm import compile_cache, features, installed, qk_norm_rope_layer, startup

pytestmark = [
    pytest.mark.skipif(
        DEVICE.type == "cpu" and extension.cpp_library() is None, reason="the C++ library was not built"
    ),
    pytest.mark.usefixtures("registered"),
]

HEADS, KV_HEADS, TOKENS = 4, 2, 7
PLAIN = {"rope_type": "default", "rope_theta": 1e6}
PART = {**PLAIN, "partial_rotary_factor": 0.5}
MROPE = {**PLAIN, "mrope_section": [24, 20, 20]}
NEAR = {"rtol": 2**-6, "atol": 2**-4}
"""Some of vLLM's rotations round every product to bf16, of heads whose elements go up to 8."""

YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 64}


class Recorder(torch.nn.Module):
    """In the place of vLLM's attention, which needs a whole engine."""

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.seen = q, k, v
        return q.contiguous()


Build = Callable[..., Any]


@pytest.fixture
def build(in_vllm: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Build]:
    """build(class, rope parameters): one of vLLM's attention layers with weights, as after loading."""
    from vllm.distributed import parallel_state

    parallel_state.init_distributed_environment(1, 0, (tmp_path / "rendezvous").as_uri(), 0, "gloo")
    parallel_state.ensure_model_parallel_initialized(1, 1)

    def build(name: str, rope: dict[str, Any] = PLAIN, **more: Any) -> Any:
        module = importlib.import_module(qk_norm_rope_layer.CLASSES[name])
        monkeypatch.setattr(module, "Attention", Recorder)
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16)
        try:
            with torch.device(DEVICE):
                layer = MAKE.get(name, _of_qwen)(module, name, rope, **more)
        finally:
            torch.set_default_dtype(before)
        for parameter in layer.parameters():
            torch.nn.init.normal_(parameter, std=0.05 if parameter.dim() > 1 else 1.0)
        for linear in (layer.qkv_proj, layer.o_proj):
            linear.quant_method.process_weights_after_loading(linear)
        return layer.requires_grad_(False)

    yield build
    parallel_state.destroy_model_parallel()
    parallel_state.destroy_distributed_environment()


def _of_qwen(module: Any, name: str, rope: dict[str, Any]) -> Any:
    return getattr(module, name)(HIDDEN, HEADS, KV_HEADS, rope_parameters=rope, head_dim=HEAD, prefix="layers.0.attn")


def _of_gemma(module: Any, name: str, rope: dict[str, Any], kind: str = "full_attention") -> Any:
    from transformers import Gemma3TextConfig

    kinds = ("full_attention", "sliding_attention")
    config = Gemma3TextConfig(
        hidden_size=HIDDEN,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=HEAD,
        num_hidden_layers=2,
        layer_types=list(kinds),
        rope_parameters=dict.fromkeys(kinds, rope),
    )
    prefix = f"layers.{kinds.index(kind)}.attn"
    return module.Gemma3Attention(config, HIDDEN, HEADS, KV_HEADS, HEAD, 1024, prefix=prefix)


def _of_qwen_next(module: Any, name: str, rope: dict[str, Any], gated: bool = True) -> Any:
    from transformers import Qwen3NextConfig

    sizes = {"num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": HEAD}
    config = Qwen3NextConfig(hidden_size=HIDDEN, rope_parameters=rope, **sizes)
    config.attn_output_gate = gated
    return module.Qwen3NextAttention(config, prefix="layers.0.attn")


MAKE = {"Gemma3Attention": _of_gemma, "Qwen3NextAttention": _of_qwen_next}


@pytest.fixture
def forced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers that the operator fits are on, whatever runs it: the reference too."""
    monkeypatch.setattr(qk_norm_rope_layer, "why_reference", lambda specs: None)
    monkeypatch.setattr(qk_norm_rope_layer, "_why_slower", lambda x: None)


def _config(quant_config: Any = None, *, fuses: bool = False) -> Any:
    passes = SimpleNamespace(enable_qk_norm_rope_fusion=fuses)
    config = vllm_config(quant_config)
    config.compilation_config = SimpleNamespace(pass_config=passes)
    return config


def _survey(layer: Any, **more: Any) -> Any:
    """How the plugin sees the layer."""
    (found,) = qk_norm_rope_layer.survey([layer], _config(**more), DEVICE)
    return found


def _take(layer: Any) -> None:
    qk_norm_rope_layer.take([_survey(layer)], _config())


def _positions(dims: int) -> Tensor:
    of_text = torch.arange(TOKENS, device=DEVICE) + 3
    return of_text if dims == 1 else torch.stack([of_text, of_text * 2, of_text + 9])


def _calls() -> int:
    counted = counters.snapshot()[qk_norm_rope_layer.OP]
    return int(counted["kernel"] + sum(counted["reference"].values()))


FITTING = {
    "dense": ("Qwen3Attention", PLAIN, 1, {}),
    "experts": ("Qwen3MoeAttention", PLAIN, 1, {}),
    "a part of each head": ("Qwen3Attention", PART, 1, {}),
    "YaRN's table": ("Qwen3Attention", YARN, 1, {}),
    "MRoPE in sections": ("Qwen3Attention", MROPE, 2, {}),
    "MRoPE interleaved": ("Qwen3MoeAttention", {**MROPE, "mrope_interleaved": True}, 2, {}),
    "MRoPE with one position a token": ("Qwen3Attention", MROPE, 1, {}),
    "Gemma, global": ("Gemma3Attention", PLAIN, 1, {"kind": "full_attention"}),
    "Gemma, sliding": ("Gemma3Attention", PLAIN, 1, {"kind": "sliding_attention"}),
}


@pytest.mark.parametrize("case", FITTING)
def test_attention_gets_the_q_k_and_v_of_vllms_forward_from_one_call(build: Build, forced: None, case: str) -> None:
    name, rope, dims, more = FITTING[case]
    layer, x, positions = build(name, rope, **more), rows(TOKENS, HIDDEN), _positions(dims)
    output, expected = layer(positions, x), layer.attn.seen
    _take(layer)
    before = _calls()
    result, found = layer(positions, x), layer.attn.seen
    assert _calls() == before + 1
    assert torch.equal(found[2], expected[2])
    for of_ours, of_vllm in zip(found[:2], expected[:2], strict=True):
        torch.testing.assert_close(of_ours, of_vllm, **NEAR)
    torch.testing.assert_close(result, output, **NEAR)


def test_q_k_and_v_stay_where_the_projection_wrote_them(build: Build, forced: None) -> None:
    layer = build("Qwen3Attention")
    _take(layer)
    layer(_positions(1), rows(TOKENS, HIDDEN))
    q, k, v = layer.attn.seen
    assert [tensor.storage_offset() for tensor in (q, k, v)] == [0, HEADS * HEAD, (HEADS + KV_HEADS) * HEAD]
    assert q.untyped_storage().data_ptr() == k.untyped_storage().data_ptr() == v.untyped_storage().data_ptr()


def test_batches_of_another_shape_run_vllms_own_forward(build: Build, forced: None) -> None:
    layer = build("Qwen3Attention")
    _take(layer)
    before = _calls()
    layer(_positions(1), rows(1, TOKENS, HIDDEN))
    assert _calls() == before


def test_rows_that_the_norm_before_has_quantized_are_taken_too(build: Build, forced: None) -> None:
    layer, x = build("Qwen3Attention"), rows(TOKENS, HIDDEN)
    qkv, _ = layer.qkv_proj(x)
    _take(layer)
    layer(_positions(1), x)
    expected = layer.attn.seen
    layer.qkv_proj.forward = lambda quantized: (quantized.data, None)
    before = _calls()
    layer(_positions(1), SimpleNamespace(data=qkv, orig_shape=x.shape))
    assert _calls() == before + 1
    assert all(map(torch.equal, layer.attn.seen, expected))


def _scale_norms_apart(layer: Any) -> None:
    layer.k_norm.variance_epsilon *= 10


def _norm_all_heads(layer: Any) -> None:
    from vllm.model_executor.layers.layernorm import RMSNorm

    layer.q_norm, layer.k_norm = RMSNorm(HEADS * HEAD), RMSNorm(KV_HEADS * HEAD)


def _norm_parts(layer: Any) -> None:
    layer.q_norm.variance_size_override = HEAD // 2


def _norm_without_weight(layer: Any) -> None:
    layer.q_norm.has_weight = False


def _norm_otherwise(layer: Any) -> None:
    from vllm.model_executor.layers.layernorm import RMSNorm

    class ScaledRMSNorm(RMSNorm):  # type: ignore[misc]
        pass

    layer.k_norm.__class__ = ScaledRMSNorm


def _rotate_otherwise(layer: Any) -> None:
    from vllm.model_executor.layers.rotary_embedding import RotaryEmbedding

    class TwistedRotaryEmbedding(RotaryEmbedding):  # type: ignore[misc]
        def forward_native(self, positions: Tensor, query: Tensor, key: Tensor | None = None) -> Any:
            return query, key

    layer.rotary_emb.__class__ = TwistedRotaryEmbedding


def _rotate_in_chunks(layer: Any) -> None:
    from vllm.model_executor.layers.rotary_embedding.dual_chunk_rope import DualChunkRotaryEmbedding

    layer.rotary_emb.__class__ = DualChunkRotaryEmbedding


def _rotate_by_flashinfer(layer: Any) -> None:
    layer.rotary_emb.use_flashinfer = True


MISFITS: dict[Callable[[Any], None], str] = {
    _scale_norms_apart: "its two norms differ",
    _norm_all_heads: "its norms are not of heads with a weight",
    _norm_parts: "its norms are not of heads with a weight",
    _norm_without_weight: "its norms are not of heads with a weight",
    _norm_otherwise: "its norms are ScaledRMSNorm",
    _rotate_otherwise: "its rotary embedding is TwistedRotaryEmbedding",
    _rotate_in_chunks: "its rotary embedding is DualChunkRotaryEmbedding",
    _rotate_by_flashinfer: "its rotary embedding is RotaryEmbedding",
}


@pytest.mark.parametrize("change", MISFITS)
def test_what_the_operator_does_not_do_stays_vllms_and_is_no_fallback(
    build: Build, forced: None, change: Callable[[Any], None]
) -> None:
    layer = build("Qwen3Attention")
    rotary = type(layer.rotary_emb), dict(vars(layer.rotary_emb))
    try:
        change(layer)
        found = _survey(layer)
    finally:  # vLLM shares it between layers
        layer.rotary_emb.__class__ = rotary[0]
        vars(layer.rotary_emb).update(rotary[1])
    assert found.native_because == MISFITS[change]
    assert not found.fell_back()
    qk_norm_rope_layer.take([found], _config())
    assert qk_norm_rope_layer.OPTIONS not in vars(layer)


def test_a_rotary_class_without_the_method_that_ours_calls_is_a_reason(
    build: Build, forced: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, name = build("Qwen3Attention"), "_match_cos_sin_cache_dtype"
    monkeypatch.delattr(next(cls for cls in type(layer.rotary_emb).__mro__ if name in vars(cls)), name)
    found = _survey(layer)
    assert found.native_because == f"RotaryEmbedding has no {name}"
    assert not found.fell_back()


@pytest.mark.parametrize("name", [*qk_norm_rope_layer.ASKED, qk_norm_rope_layer.GATE])
def test_a_layer_without_an_attribute_that_ours_asks_for_is_a_reason(build: Build, forced: None, name: str) -> None:
    layer = build("Qwen3NextAttention", PART)
    delattr(layer, name)
    assert _survey(layer).native_because == f"Qwen3NextAttention has no {name}"


def test_a_forward_with_a_step_that_ours_lacks_stays_vllms(
    build: Build, forced: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(self: Any, positions: Tensor, hidden_states: Tensor) -> Tensor:
        qkv, _ = self.qkv_proj(hidden_states)
        return self.gate_proj(self.clip(qkv))  # type: ignore[no-any-return]

    layer = build("Qwen3Attention")
    monkeypatch.setattr(type(layer), "forward", forward)
    assert _survey(layer).native_because == "Qwen3Attention also uses clip, gate_proj"


@pytest.mark.parametrize("named_like", [lambda own: lambda around: around, functools.wraps], ids=["plain", "wraps"])
def test_a_forward_that_another_plugin_put_around_vllms_is_not_passed_by(
    build: Build, forced: None, monkeypatch: pytest.MonkeyPatch, named_like: Any
) -> None:
    layer = build("Qwen3Attention")
    own = type(layer).forward
    monkeypatch.setattr(type(layer), "forward", named_like(own)(lambda self, *given: own(self, *given)))
    assert _survey(layer).native_because == "Qwen3Attention projects elsewhere"


def test_a_step_in_a_function_inside_forward_counts(
    build: Build, forced: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = build("Qwen3Attention")
    monkeypatch.setattr(
        type(layer), "forward", lambda self, positions: (lambda qkv: qkv.clip())(self.qkv_proj(positions))
    )
    assert _survey(layer).native_because == "Qwen3Attention also uses clip"


def test_a_forward_with_an_argument_that_ours_lacks_stays_vllms(
    build: Build, forced: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(self: Any, positions: Tensor, hidden_states: Tensor, *, scale: float = 1.0) -> Tensor:
        qkv, _ = self.qkv_proj(hidden_states)
        return self.o_proj(qkv * scale)  # type: ignore[no-any-return]

    layer = build("Qwen3Attention")
    monkeypatch.setattr(type(layer), "forward", forward)
    assert _survey(layer).native_because == "Qwen3Attention also uses scale"


def test_a_step_beside_the_gate_that_ours_lacks_stays_vllms(
    build: Build, forced: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = build("Qwen3NextAttention", PART)
    monkeypatch.setattr(type(layer), qk_norm_rope_layer.PROJECT, lambda self, qkv, positions: self.clip(qkv))
    assert _survey(layer).native_because == "Qwen3NextAttention also uses clip"


def test_where_ours_stands_in_for_forward_it_is_vllms_steps_that_count(build: Build, forced: None) -> None:
    layer = build("Qwen3Attention")
    _take(layer)
    assert _survey(layer).native_because is None


def test_an_attention_layer_of_another_class_is_none_of_ours(build: Build, forced: None) -> None:
    layer = build("Qwen3Attention")
    layer.__class__ = type("Qwen3Attention", (type(layer),), {"__module__": "vllm.of_another_plugin"})
    assert qk_norm_rope_layer.survey([layer], _config(), DEVICE) == []


def test_without_a_kernel_the_layer_stays_vllms_and_strict_mode_starts(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    why = serving_ops.Explanation("reference", "not built")
    monkeypatch.setattr("serving_ops.explain", lambda *_, **__: why)
    found = _survey(build("Qwen3Attention"))
    assert found.native_because == "qk_norm_rope has no kernel for it: not built"
    assert not found.fell_back()


def test_left_out_by_name_it_stays_vllms(build: Build, forced: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVING_OPS", "rms_norm,fused_add_rms_norm")
    assert _survey(build("Qwen3Attention")).native_because == "left out by SERVING_OPS"


def test_a_fusion_that_the_user_asked_vllm_for_stays_vllms(build: Build, forced: None) -> None:
    assert _survey(build("Qwen3Attention"), fuses=True).native_because == qk_norm_rope_layer.PASS


def test_without_our_part_of_the_compile_cache_key_it_stays_vllms(
    build: Build, forced: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(installed.failures, features.COMPILE_CACHE, "keys made otherwise")
    assert _survey(build("Qwen3Attention")).native_because == "keys made otherwise"


@pytest.mark.parametrize("method", ["forward_cuda", "forward_native"])
@pytest.mark.parametrize(("library", "reason"), [(None, qk_norm_rope_layer.FROM_PYTHON), (Path("there"), None)])
def test_on_cuda_it_is_on_where_cpp_launches_it_compiled_or_not(
    build: Build, monkeypatch: pytest.MonkeyPatch, method: str, library: Path | None, reason: str | None
) -> None:
    layer = build("Qwen3Attention")
    layer.q_norm._forward_method = getattr(layer.q_norm, method)
    monkeypatch.setattr(qk_norm_rope_layer, "why_reference", lambda specs: None)
    monkeypatch.setattr(qk_norm_rope_layer.extension, "cpp_library", lambda: library)
    (found,) = qk_norm_rope_layer.survey([layer], _config(), torch.device("cuda"))
    assert found.native_because == reason


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("cached", [True, False])
def test_beside_an_output_gate_it_is_on_where_it_writes_the_cache(
    build: Build, forced: None, cached: bool, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qk_norm_rope_layer.cache_write, "is_for", lambda *_: cached)
    layer = build("Qwen3NextAttention", PART)
    (found,) = qk_norm_rope_layer.survey([layer], _config(), torch.device(device))
    assert found.native_because == (None if cached else qk_norm_rope_layer.GATE_ALONE)
    assert not found.fell_back()


def _worker(model: torch.nn.Module, config: Any) -> Any:
    return SimpleNamespace(
        get_model=lambda: model, model_runner=SimpleNamespace(), device=DEVICE, vllm_config=config
    )  # fmt: skip


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The start-up lines that are logged."""
    found: list[str] = []
    monkeypatch.setattr(startup._logger, "info", found.append)
    return found


def test_the_start_up_line_counts_the_layer_and_not_its_norms(build: Build, forced: None, lines: list[str]) -> None:
    from vllm.model_executor.layers.layernorm import RMSNorm

    model = torch.nn.ModuleList([RMSNorm(HIDDEN, dtype=torch.bfloat16), build("Qwen3Attention")]).to(DEVICE)
    startup.on_model_loaded(_worker(model, _config()), strict=True)
    assert f"on for 1 of 1 RMSNorm, 1 of 1 {qk_norm_rope_layer.KIND}; prewarmed 3 norms" in lines[0]


def test_where_it_is_off_the_line_counts_the_norms_and_says_why(
    build: Build, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVING_OPS", "rms_norm,fused_add_rms_norm")
    startup.on_model_loaded(_worker(build("Qwen3Attention"), _config()), strict=True)
    assert f"on for 2 of 2 RMSNorm; native: 1 {qk_norm_rope_layer.KIND} (left out by SERVING_OPS)" in lines[0]


def test_a_quantized_model_keeps_its_norms_and_fuses_those_of_q_and_k(
    build: Build, forced: None, lines: list[str]
) -> None:
    from vllm import ir
    from vllm.model_executor.layers.layernorm import RMSNorm

    for op in ("rms_norm", "fused_add_rms_norm"):
        getattr(ir.ops, op).set_default(["native"])
    quantized = _config(SimpleNamespace(get_name=lambda: "fp8"))
    quantized.compilation_config.pass_config.fuse_norm_quant = True
    quantized.compilation_config.mode = SimpleNamespace(name="STOCK_TORCH_COMPILE")
    model = torch.nn.ModuleList([RMSNorm(HIDDEN, dtype=torch.bfloat16), build("Qwen3Attention")]).to(DEVICE)
    startup.on_model_loaded(_worker(model, quantized), strict=True)
    assert f"on for 1 of 1 {qk_norm_rope_layer.KIND}; native: 1 RMSNorm (its consumer quantizes to FP8)" in lines[0]
    before = _calls()
    model[1](_positions(1), rows(TOKENS, HIDDEN))
    assert _calls() == before + 1


def test_if_its_prewarm_fails_its_norms_are_prewarmed_and_called_instead(
    build: Build, forced: None, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def prewarm(specs: Any) -> PrewarmReport:
        asked.extend(spec.op for spec in specs)
        return PrewarmReport(failed={spec: "no compiler" for spec in specs if spec.op == qk_norm_rope_layer.OP})

    monkeypatch.setattr("serving_ops.prewarm", prewarm)
    layer = build("Qwen3Attention")
    startup.on_model_loaded(_worker(layer, _config()), strict=False)
    assert (
        f"on for 2 of 2 RMSNorm; native: 1 {qk_norm_rope_layer.KIND} (the prewarm of qk_norm_rope failed)" in lines[0]
    )
    assert asked[-1] == "rms_norm"
    before = _calls()
    layer(_positions(1), rows(TOKENS, HIDDEN))
    assert _calls() == before
    with pytest.raises(RuntimeError, match="the prewarm of qk_norm_rope failed"):
        startup.on_model_loaded(_worker(layer, _config()), strict=True)


def test_attention_of_which_vllm_changed_the_parts_leaves_other_norms_on(
    build: Build, forced: None, lines: list[str]
) -> None:
    layer = build("Qwen3Attention")
    rotary = vars(layer.rotary_emb).pop("use_flashinfer")
    try:
        startup.on_model_loaded(_worker(layer, _config()), strict=False)
        assert "on for 2 of 2 RMSNorm; prewarmed" in lines[0]
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("SERVING_OPS", "strict")
            with pytest.raises(RuntimeError, match=r"could not look at attention layers.*use_flashinfer"):
                startup.on_model_loaded(_worker(layer, _config()), strict=True)
    finally:
        layer.rotary_emb.use_flashinfer = rotary


def test_a_layers_text_has_its_options(build: Build, forced: None) -> None:
    for name, rope, _, more in FITTING.values():
        (layer,) = qk_norm_rope_layer.survey([build(name, rope, **more)], _config(), DEVICE)
        options = rope_options(layer.specs[0])
        text = rope_text.options_text(options)
        assert rope_text.options_of(text) == options


def test_undo_restores_forward_also_for_a_model_that_is_loaded(build: Build, forced: None) -> None:
    layer = build("Qwen3Attention")
    own = type(layer).forward
    _take(layer)
    assert type(layer).forward is not own
    installed.undo()
    assert type(layer).forward is own
    assert qk_norm_rope_layer.OPTIONS not in vars(layer)


def test_the_record_of_what_was_changed_does_not_keep_a_model_alive(build: Build, forced: None) -> None:
    layer = build("Qwen3Attention")
    _take(layer)
    watched = weakref.ref(layer)
    del layer
    gc.collect()
    assert watched() is None


def test_the_compile_cache_key_says_which_layers_are_on(build: Build, forced: None) -> None:
    without = compile_cache.compile_key()
    model = torch.nn.ModuleDict({"first": build("Qwen3Attention"), "second": build("Qwen3Attention")})
    found = qk_norm_rope_layer.survey([model], _config(), DEVICE)
    keys = [without]
    for on in (found, found[:1]):
        qk_norm_rope_layer.take(on, _config())
        keys.append(compile_cache.compile_key())
    assert len(set(keys)) == 3
    installed.undo()
    assert compile_cache.compile_key() not in keys[1:]


def _compiled(function: Any, *args: Tensor) -> tuple[Any, str]:
    """As vLLM compiles: one graph for any number of tokens, mutation by its first form of functional calls."""
    torch._dynamo.reset()
    for tensor in args:
        torch._dynamo.mark_dynamic(tensor, tensor.dim() - 1 if tensor.dtype == torch.int64 else 0)
    with torch._inductor.config.patch(enable_auto_functionalized_v2=False), torch.inference_mode():
        result, code = run_and_get_code(torch.compile(function, fullgraph=True), *args)
    (graph,) = code
    return result, graph.split("def call(")[1].split("\nrunner = ")[0]


@pytest.mark.parametrize("case", ["dense", "MRoPE interleaved", "Gemma, global"])
def test_a_compiled_piece_that_ends_before_attention_copies_no_part_of_qkv(
    build: Build, forced: None, case: str
) -> None:
    name, rope, dims, more = FITTING[case]
    layer, x, positions = build(name, rope, **more), rows(TOKENS, HIDDEN), _positions(dims)
    layer(positions, x)
    expected = layer.attn.seen
    layer.attn.forward = lambda q, k, v: (q, k, v)
    layer.o_proj.forward = lambda views: (views, None)
    _take(layer)
    found, code = _compiled(layer, positions, x)
    for of_ours, of_vllm in zip(found, expected, strict=True):
        torch.testing.assert_close(of_ours, of_vllm, **NEAR)
    assert code.count(f"torch.ops.serving_ops.{rope_text.OP}.default(") == 1
    assert not [word for word in ("copy_(", "clone", "cpp_fused", "triton_") if word in code], code
    assert len({tensor.untyped_storage().data_ptr() for tensor in found}) == 1
