"""Qwen3's attention with q and k normed, rotated and cached by our operator, beside SGLang's own code for it."""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("sglang", reason="SGLang is not installed beside this package: test_sglang_versions.py runs these")

from built_layers import HIDDEN, rms_norm, rows, runner_of

from serving_ops import NormSpec, PrewarmReport, extension
from serving_ops.integrations.common import rope_text
from serving_ops.integrations.sglang import layers, qk_norm_rope_layer, server_args, startup, switch
from serving_ops.ops.registry import sample

HEADS, KV_HEADS, HEAD = 4, 2, 64
DENSE, EXPERTS = "sglang.srt.models.qwen3.Qwen3Attention", "sglang.srt.models.qwen3_moe.Qwen3MoeAttention"
SLOTS = 16
CLOSE = {"rtol": 2e-2, "atol": 2e-2}
"""SGLang's code for CPU rounds cos and sin to bf16, and the products too."""

pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="these layers are built for CPU"),
    pytest.mark.skipif(extension.cpp_library() is None, reason="the C++ library was not built"),
]


@pytest.fixture(autouse=True)
def _as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels for everything, and what SGLang's code asks of a server."""
    monkeypatch.setenv("SERVING_OPS", "strict")
    monkeypatch.setattr(layers, "why_reference", lambda specs: None)
    monkeypatch.setattr("sglang.srt.mem_cache.memory_pool.MHATokenToKVPool", Pool)
    server = SimpleNamespace(
        rl_on_policy_target=None,
        deterministic=SimpleNamespace(rl_on_policy_target=None),
        graph=SimpleNamespace(cuda_graph_config=SimpleNamespace(prefill=SimpleNamespace(tc_compiler="eager"))),
    )
    modules = ("layers.rotary_embedding.base", "layers.rotary_embedding.mrope", "models.qwen3", "models.qwen3_moe")
    for module in (*modules, "models.utils"):
        for name in ("get_exec", "get_global_server_args"):
            found = importlib.import_module(f"sglang.srt.{module}")
            monkeypatch.setattr(found, name, lambda: server, raising=False)


class Pool:
    """Stands for SGLang's `MHATokenToKVPool`: a slot a row."""

    dtype = torch.bfloat16

    def __init__(self) -> None:
        self.keys, self.values = torch.zeros(2, SLOTS, KV_HEADS, HEAD, dtype=torch.bfloat16)

    def get_kv_buffer(self, layer_id: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.keys, self.values


class OtherPool(Pool):
    """As SGLang's pools that inherit from the first, and keep tokens elsewhere, or not at all."""


class Calls(TorchDispatchMode):
    """Keeps the calls of our operators: the name, and the arguments by name, with a text's options among them."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[tuple[str, dict[str, Any]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "serving_ops":
            names = (argument.name for argument in func._schema.arguments)
            call = dict(zip(names, args, strict=False)) | kwargs
            call |= rope_text.options_of(call.pop("options")) if "options" in call else {}
            self.made.append((func._schema.name.rpartition(":")[2], call))
        return func(*args, **kwargs)


class Attn(torch.nn.Module):
    """What reads q, k and v; keeps what it was given."""

    layer_id, k_scale, v_scale = 0, None, None

    def forward(self, q: Any, k: Any, v: Any, forward_batch: Any, save_kv_cache: bool = True) -> torch.Tensor:
        self.given = [tensor.reshape(tensor.shape[0], -1).clone() for tensor in (q, k, v)]
        self.saves = save_kv_cache
        return self.given[0]


class Projection(torch.nn.Module):
    """A linear layer as SGLang's: its result and no bias."""

    def __init__(self, rows_in: int, rows_out: int) -> None:
        super().__init__()
        self.weight = rows(rows_out, rows_in, seed=8) / rows_in**0.5

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:
        return x @ self.weight.T, None


def _rotary(kind: str) -> Any:
    module = importlib.import_module("sglang.srt.layers.rotary_embedding")
    sizes = {"head_size": HEAD, "max_position_embeddings": 64, "base": 10000, "dtype": torch.bfloat16}
    if kind == "plain":
        return module.RotaryEmbedding(**sizes, rotary_dim=HEAD, is_neox_style=True)
    if kind == "interleaved pairs, half of the head":
        return module.RotaryEmbedding(**sizes, rotary_dim=HEAD // 2, is_neox_style=False)
    interleaved = kind == "interleaved sections"
    section = [12, 10, 10] if interleaved else [8, 12, 12]
    options = {"mrope_section": section, "mrope_interleaved": interleaved}
    return module.MRotaryEmbedding(**sizes, rotary_dim=HEAD, is_neox_style=True, **options)


ROTARIES = ("plain", "interleaved pairs, half of the head", "sections", "interleaved sections")


def attention(name: str, kind: str = "plain") -> Any:
    module, _, cls = name.rpartition(".")
    layer = object.__new__(getattr(importlib.import_module(module), cls))
    torch.nn.Module.__init__(layer)
    layer.num_heads, layer.num_kv_heads, layer.head_dim = HEADS, KV_HEADS, HEAD
    layer.q_size, layer.kv_size = HEADS * HEAD, KV_HEADS * HEAD
    layer.q_norm, layer.k_norm = rms_norm(HEAD), rms_norm(HEAD)
    layer.k_norm.weight.copy_(rows(HEAD, seed=9))
    layer.qkv_proj = Projection(HIDDEN, (HEADS + 2 * KV_HEADS) * HEAD)
    layer.o_proj = Projection(HEADS * HEAD, HIDDEN)
    layer.rotary_emb, layer.attn, layer.alt_stream = _rotary(kind), Attn(), None
    layer.use_fused_qk_norm_mrope = layer.use_fused_qk_norm_rope = layer.use_fused_qk_norm_rope_cpu = False
    layer.compatible_with_fused_kv_buffer = "sections" not in kind
    return layer


def report(caplog: pytest.LogCaptureFixture, layer: Any, **server_args: Any) -> str:
    """Switch a layer over as on a GPU; the start-up line."""
    runner = runner_of(layer, **server_args)
    runner.device = "cuda"
    caplog.clear()
    with caplog.at_level(logging.INFO, "sglang.serving_ops"):
        startup.on_model_loaded(runner)
    return caplog.messages[-1]


def _positions(kind: str, tokens: int) -> torch.Tensor:
    plain = torch.arange(tokens) * 3 + 1
    return torch.stack([plain, plain + 2, plain * 2]) if "sections" in kind else plain


def _batch(pool: Pool, tokens: int) -> Any:
    """A step's batch. SGLang 0.5.11 has the pool there, and later versions in a context."""
    with contextlib.suppress(ImportError):
        from sglang.srt.model_executor import forward_context

        backend = SimpleNamespace(token_to_kv_pool=pool)
        forward_context.set_forward_context(forward_context.ForwardContext(attn_backend=backend))
    return SimpleNamespace(token_to_kv_pool=pool, out_cache_loc=torch.arange(tokens) * 2 + 1)


def _with_cache(patch: pytest.MonkeyPatch, may_write: bool) -> None:
    from sglang.srt.models import utils

    patch.setattr(utils, "enable_fused_set_kv_buffer", lambda forward_batch: may_write)
    for module in ("qwen3", "qwen3_moe"):
        patch.setattr(f"sglang.srt.models.{module}.enable_fused_set_kv_buffer", lambda _: may_write, raising=False)


@pytest.mark.parametrize("kind", ROTARIES)
@pytest.mark.parametrize("name", [DENSE, EXPERTS])
@pytest.mark.parametrize("may_write", [True, False])
def test_q_k_and_v_are_sglangs_and_lie_in_the_cache_that_its_own_kernels_may_write(
    name: str, kind: str, may_write: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    layer, x, positions = attention(name, kind), rows(5, HIDDEN), _positions(kind, 5)
    _with_cache(monkeypatch, False)  # SGLang's own code for it needs a GPU
    monkeypatch.setattr(layer, "forward_prepare_npu", None)
    expected = layer.forward(positions=positions, hidden_states=x, forward_batch=_batch(Pool(), 5))
    given = layer.attn.given
    _with_cache(monkeypatch, may_write)
    assert f"1 of 1 {name.rpartition('.')[2]}'s q and k" in report(caplog, layer)
    pool = Pool()
    with Calls() as calls:
        result = layer(positions=positions, hidden_states=x, forward_batch=_batch(pool, 5))
    torch.testing.assert_close(layer.attn.given, given, **CLOSE)
    torch.testing.assert_close(result, expected, **CLOSE)
    writes = may_write and (name == DENSE or layer.compatible_with_fused_kv_buffer)
    assert layer.attn.saves is not writes
    assert [name for name, _ in calls.made] == ["qk_norm_rope_short_cached" if writes else "qk_norm_rope_short"]
    for cache, tensor in ((pool.keys, layer.attn.given[1]), (pool.values, layer.attn.given[2])):
        cached = torch.zeros(SLOTS, KV_HEADS * HEAD, dtype=torch.bfloat16)
        if writes:
            cached[1:11:2] = tensor
        assert torch.equal(cache.view(SLOTS, -1), cached)


@pytest.mark.parametrize("name", [DENSE, EXPERTS])
@pytest.mark.parametrize(
    "change", ["a scale", "pages", "another class", "another dtype", "more slots than rows", "slots apart"]
)
def test_a_cache_of_another_form_is_written_by_sglang(
    change: str, name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    layer, pool = attention(name), OtherPool() if change == "another class" else Pool()
    _with_cache(monkeypatch, True)
    report(caplog, layer)
    batch = _batch(pool, 5)
    if change == "a scale":
        layer.attn.k_scale = 1.0
    elif change == "pages":
        pool.keys = pool.keys.view(4, 4, KV_HEADS, HEAD)
    elif change == "another dtype":
        pool.keys = pool.keys.float()
    elif change == "more slots than rows":
        batch.out_cache_loc = torch.arange(6)
    elif change == "slots apart":
        batch.out_cache_loc = torch.arange(10)[::2]
    layer(positions=_positions("plain", 5), hidden_states=rows(5, HIDDEN), forward_batch=batch)
    assert layer.attn.saves
    assert not pool.keys.any()


def test_what_is_prewarmed_is_what_calls_bring(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    layer, warmed = attention(DENSE, "sections"), []

    def keep(specs: Any) -> PrewarmReport:
        warmed.extend(specs)
        return PrewarmReport()

    monkeypatch.setattr("serving_ops.prewarm", keep)
    _with_cache(monkeypatch, True)
    report(caplog, layer)
    samples = [sample(spec) for spec in warmed if spec.op == "qk_norm_rope"]
    with Calls() as calls:
        layer(positions=_positions("sections", 2), hidden_states=rows(2, HIDDEN), forward_batch=_batch(Pool(), 2))
    ((_, brought),) = calls.made
    assert any(
        _form(brought) == {name: it for name, it in _form(found).items() if name in brought} for found in samples
    )


def _form(call: dict[str, Any]) -> dict[str, Any]:
    """What kernels are compiled for: dtypes and dimensions of tensors, and the other arguments."""
    tensors = {name: (it.dtype, it.dim(), it.shape[-1]) for name, it in call.items() if torch.is_tensor(it)}
    tensors.pop("positions", None), tensors.pop("slot_mapping", None)
    plain = {name: tuple(it) if isinstance(it, list) else it for name, it in call.items() if not torch.is_tensor(it)}
    return tensors | {name: it for name, it in plain.items() if it is not None}


def _glm() -> Any:
    layer = attention(DENSE, "sections")
    layer.rotary_emb.mrope_interleaved_glm = True
    return layer


def _of_another_class() -> Any:
    layer = attention(DENSE)

    class RotaryEmbedding(type(layer.rotary_emb)):  # type: ignore[misc]
        def forward_native(self) -> None:
            """Something else."""

    layer.rotary_emb.__class__ = RotaryEmbedding
    return layer


def _with_other_norms() -> Any:
    layer = attention(DENSE)
    layer.k_norm.variance_epsilon = 1e-3
    return layer


def _chosen() -> Any:
    layer = attention(EXPERTS)
    layer.use_fused_qk_norm_rope = True
    return layer


REFUSED = {
    "no code for MRotaryEmbedding": _glm,
    "no code for RotaryEmbedding": _of_another_class,
    "q and k have norms of two kinds": _with_other_norms,
    "the user chose SGLang's fused kernel": _chosen,
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_the_operator_does_not_do_stays_sglangs_and_that_is_no_fallback(
    reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    layer = REFUSED[reason]()
    assert f"1 {type(layer).__name__}'s q and k ({reason})" in report(caplog, layer)
    assert not {"forward", "apply_qk_norm_rope", qk_norm_rope_layer.KEPT} & vars(layer).keys()


@pytest.mark.parametrize(
    "read",
    [
        ["sglang.srt.models.utils.enable_fused_set_kv_buffer"],
        [
            "sglang.srt.model_executor.forward_batch_info.ForwardBatch.token_to_kv_pool",
            "sglang.srt.model_executor.forward_context.get_token_to_kv_pool",
        ],
        [f"{__name__}.Pool.get_kv_buffer"],
        ["sglang.srt.mem_cache.memory_pool.MHATokenToKVPool"],
        [f"{__name__}.Attn.k_scale"],
    ],
    ids=lambda read: read[-1].rpartition(".")[2],
)
def test_where_sglang_lacks_what_a_call_reads_the_layer_stays_its_own(
    read: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    layer = attention(DENSE)
    for name in read:
        with contextlib.suppress(ImportError):  # SGLang 0.5.11 has no such context
            monkeypatch.delattr(name, raising=False)
    assert "native: 1 Qwen3Attention's q and k (this SGLang is not known: " in report(caplog, layer)
    assert "forward" not in vars(layer)


@pytest.mark.parametrize(("name", "method"), [(DENSE, "forward"), (EXPERTS, "apply_qk_norm_rope")])
def test_a_method_that_another_plugin_put_around_sglangs_is_not_passed_by(
    name: str, method: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    layer = attention(name)
    own = getattr(type(layer), method)
    monkeypatch.setattr(type(layer), method, functools.wraps(own)(lambda self, *given: own(self, *given)))
    assert f"(other code stands in for its {method})" in report(caplog, layer)
    assert method not in vars(layer)


def _clipping(self: Any, positions: Any, hidden_states: Any) -> Any:
    return self.clip(self.qkv_proj(hidden_states)[0]).split(self.q_size)


def _scaling(self: Any, qkv: Any, positions: Any, forward_batch: Any, scale: float = 1.0) -> Any:
    return (qkv * scale).split(self.q_size)


@pytest.mark.parametrize(
    ("name", "method", "changed", "step"),
    [(DENSE, "forward_prepare_native", _clipping, "clip"), (EXPERTS, "apply_qk_norm_rope", _scaling, "scale")],
)
def test_a_method_with_a_step_or_an_argument_that_ours_lacks_stays_sglangs(
    name: str, method: str, changed: Any, step: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """changed: SGLang's method in another version."""
    layer, replaced = attention(name), {DENSE: "forward", EXPERTS: "apply_qk_norm_rope"}[name]
    file = sys.modules[type(layer).__module__].__file__
    changed.__name__, changed.__code__ = method, changed.__code__.replace(co_filename=file)
    monkeypatch.setattr(type(layer), method, changed)
    assert f"(its {replaced} also uses {step})" in report(caplog, layer)
    assert replaced not in vars(layer)


def test_a_subclass_that_fills_its_table_otherwise_is_ours(caplog: pytest.LogCaptureFixture) -> None:
    layer = attention(DENSE)
    module = importlib.import_module("sglang.srt.layers.rotary_embedding.yarn")
    layer.rotary_emb.__class__ = module.YaRNScalingRotaryEmbedding
    assert "1 of 1 Qwen3Attention's q and k" in report(caplog, layer)


def test_a_compiled_model_and_an_op_that_was_left_out_stay_sglangs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    line = report(caplog, attention(DENSE), enable_torch_compile=True)
    assert "1 Qwen3Attention's q and k (torch.compile traces the model)" in line
    monkeypatch.setenv("SERVING_OPS", "strict,rms_norm,fused_add_rms_norm")
    assert f"1 Qwen3Attention's q and k ({layers.LEFT_OUT})" in report(caplog, attention(DENSE))


@pytest.mark.parametrize(
    "server_args",
    [
        {"disable_cuda_graph": True},
        {
            "cuda_graph_config": SimpleNamespace(
                decode=SimpleNamespace(backend="disabled"), prefill=SimpleNamespace(backend="disabled")
            )
        },
    ],
)
def test_without_cuda_graphs_it_is_sglangs(server_args: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    assert "native: 1 Qwen3Attention's q and k" in report(caplog, attention(DENSE), **server_args)


def test_where_decode_context_parallelism_spreads_the_cache_it_is_sglangs(caplog: pytest.LogCaptureFixture) -> None:
    line = report(caplog, attention(DENSE), dcp_size=2)
    assert f"native: 1 Qwen3Attention's q and k ({qk_norm_rope_layer.SPREAD})" in line


@pytest.mark.parametrize("given", [{"cuda_graph_backend_decode": "disabled"}, {"disable_decode_cuda_graph": True}])
def test_arguments_count_as_the_server_resolves_them(given: dict[str, Any]) -> None:
    """Since 0.5.23 the server's record has them as the user gave them."""
    reason = "this SGLang resolves the record itself"
    hook = pytest.importorskip("sglang.srt.arg_groups.cuda_graph_hook", reason=reason)
    from sglang.srt.server_args import ServerArgs

    args = ServerArgs(model_path="none", **given)
    hook.parse_cuda_graph_config(args)
    runner = runner_of()
    runner.server_args = args
    assert qk_norm_rope_layer.why_not_there(args) is None
    assert qk_norm_rope_layer.why_not_there(server_args.resolved(runner)) == qk_norm_rope_layer.NOT_MEASURED


def test_a_caller_that_does_not_ask_who_writes_the_cache_keeps_sglangs_method(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    layer = attention(EXPERTS)
    monkeypatch.setattr(type(layer), "forward_core", lambda self, state: self.attn(*state))
    assert "(its forward_core does not read _used_fused" in report(caplog, layer)
    assert "apply_qk_norm_rope" not in vars(layer)


def test_without_the_cpp_library_it_is_sglangs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(qk_norm_rope_layer.extension, "cpp_library", lambda: None)
    assert f"({qk_norm_rope_layer.FROM_PYTHON})" in report(caplog, attention(DENSE))


def test_where_there_is_no_kernel_or_its_prewarm_fails_sglangs_own_code_runs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(layers, "why_reference", lambda specs: _why(specs, "no kernel"))
    layer = attention(DENSE)
    assert "1 Qwen3Attention's q and k (no kernel)" in report(caplog, layer)
    assert "forward" not in vars(layer)
    monkeypatch.setattr(layers, "why_reference", lambda specs: None)
    monkeypatch.setattr("sglang.srt.mem_cache.memory_pool.MHATokenToKVPool", Pool)

    def fails(specs: Any) -> PrewarmReport:
        return PrewarmReport(failed={spec: "no compiler" for spec in specs if spec.op == "qk_norm_rope"})

    monkeypatch.setattr("serving_ops.prewarm", fails)
    with pytest.raises(RuntimeError, match="the prewarm of qk_norm_rope failed"):
        report(caplog, layer)
    monkeypatch.setenv("SERVING_OPS", "auto")
    assert "1 Qwen3Attention's q and k (the prewarm of qk_norm_rope failed)" in report(caplog, layer)
    assert "forward" not in vars(layer)


def _why(specs: tuple[NormSpec, ...], reason: str) -> str | None:
    return reason if any(spec.op == "qk_norm_rope" for spec in specs) else None


def test_on_cpu_attention_is_sglangs_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    layer = attention(DENSE)
    with caplog.at_level(logging.INFO, "sglang.serving_ops"):
        startup.on_model_loaded(runner_of(layer))
    assert "q and k" not in caplog.messages[-1]
    assert "forward" not in vars(layer)


@pytest.mark.parametrize("name", [DENSE, EXPERTS])
def test_switched_off_an_attention_layer_is_sglangs_again(name: str, caplog: pytest.LogCaptureFixture) -> None:
    layer = attention(name)
    before = dict(vars(layer))
    report(caplog, layer)
    assert vars(layer).keys() > before.keys()
    switch.off(layer)
    assert vars(layer) == before
