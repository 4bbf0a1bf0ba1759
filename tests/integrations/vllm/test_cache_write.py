"""The kernel that norms and rotates q and k writes vLLM's KV cache too: what vLLM would, where its cache is known."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("vllm")

from in_process import DEVICE, HEAD, HIDDEN, imports_at_each_call, rows
from test_qk_norm_rope import HEADS, KV_HEADS, PART, PLAIN, TOKENS, Build, _config, _positions, build, forced
from torch import Tensor
from vllm.config import CompilationMode
from vllm.model_executor.layers.attention import attention as of_vllm

from serving_ops.integrations.vllm import cache_write, compile_cache, installed, qk_norm_rope_layer

__all__ = ["build", "forced"]
pytestmark = pytest.mark.usefixtures("registered")

BLOCKS, BLOCK = 3, 16
WRITE = "do_kv_cache_update"
BF16 = torch.bfloat16
SLOTS = [40, 3, -1, 17, 2]
"""Two tokens fewer than there are: the last ones are padding, as in a graph that is captured for more tokens."""

LAYOUTS: dict[str, Callable[[], Tensor]] = {
    "until 0.31": lambda: torch.zeros(BLOCKS, 2, BLOCK, KV_HEADS, HEAD),
    "since 0.32": lambda: torch.zeros(BLOCKS, KV_HEADS, BLOCK, 2 * HEAD),
    "since 0.32, tokens before heads": lambda: torch.zeros(BLOCKS, BLOCK, KV_HEADS, 2 * HEAD).transpose(1, 2),
}


IN_TURNS = {**PART, "mrope_section": [12, 10, 10], "mrope_interleaved": True}
ATTENTIONS: dict[str, tuple[str, dict[str, Any], int, dict[str, Any]]] = {
    "dense": ("Qwen3Attention", PLAIN, 1, {}),
    "gated": ("Qwen3NextAttention", PART, 1, {}),
    "gated, MRoPE": ("Qwen3NextAttention", IN_TURNS, 2, {}),
    "gated, MRoPE with one position a token": ("Qwen3NextAttention", IN_TURNS, 1, {}),
    "as gated without a gate": ("Qwen3NextAttention", PART, 1, {"gated": False}),
}
"""Class, rope parameters, dimensions of the positions, and more. Where it is gated, each head of q has a gate beside
it."""


class FlashAttentionImpl:
    """In the place of vLLM's, which needs a GPU. It writes token by token, and attends by copying q."""

    def __init__(self) -> None:
        self.wrote = False

    def do_kv_cache_update(self, layer: Any, key: Tensor, value: Tensor, cache: Tensor, slots: Tensor) -> None:
        self.wrote = True
        for token, slot in enumerate(slots.tolist()):
            if slot >= 0:
                of_slot = _by_slots(cache, slot)
                of_slot[..., 0, :, :], of_slot[..., 1, :, :] = key[token], value[token]

    def forward(
        self, layer: Any, q: Tensor, k: Tensor, v: Tensor, cache: Tensor, *_: Any, output: Tensor, **__: Any
    ) -> None:
        self.seen = q, k, v
        output.copy_(q)


def _by_slots(cache: Tensor, slot: int) -> Tensor:
    """(2, heads, head_dim): the key and the value of a slot, of a cache in any layout."""
    block, place = divmod(slot, BLOCK)
    if cache.dim() == 5:
        return cache[block, :, place]
    return cache[block, :, place].unflatten(-1, (2, HEAD)).transpose(0, 1)


class Attention(torch.nn.Module):
    """vLLM's layer, without what only an engine gives it."""

    forward = of_vllm.Attention.forward

    def __init__(self, cache: Tensor) -> None:
        super().__init__()
        self.layer_name, self.impl, self.kv_cache = "layers.0.attn", FlashAttentionImpl(), cache
        self.num_heads, self.num_kv_heads, self.head_size, self.head_size_v = HEADS, KV_HEADS, HEAD, HEAD
        self.attn_backend = SimpleNamespace(forward_includes_kv_cache_update=False)
        self.attn_type, self.kv_sharing_target_layer_name, self.query_quant = "decoder", None, None
        self.kv_cache_torch_dtype, self.calculate_kv_scales, self.use_direct_call = torch.bfloat16, False, False
        self.kv_cache_update_bypass = False


Attention.__module__ = cache_write.ATTENTION["Attention"]
FlashAttentionImpl.__module__ = cache_write.BACKEND["FlashAttentionImpl"]


def _compiled_config() -> Any:
    config = _config()
    config.compilation_config.mode = CompilationMode.VLLM_COMPILE
    config.compilation_config.use_inductor_graph_partition = False
    config.compilation_config.splitting_ops = ["vllm::unified_attention_with_output", cache_write.VLLM_WRITES]
    config.parallel_config = SimpleNamespace(world_size=1)
    return config


@pytest.fixture
def step(monkeypatch: pytest.MonkeyPatch) -> Any:
    """vLLM's context of a step: its layer, and its slots, or None while memory is profiled."""
    now = SimpleNamespace(layer=None, slots=torch.tensor(SLOTS, device=DEVICE))
    context = lambda name: (None, now.layer, now.layer.kv_cache, now.slots)  # noqa: E731
    monkeypatch.setattr(of_vllm, "get_attention_context", context)
    return now


@pytest.fixture
def attending(build: Build, forced: None, step: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """attending(cache, case of ATTENTIONS): an attention layer of a model, over vLLM's attention with this cache."""
    monkeypatch.setattr(cache_write, "is_for", lambda attn, *_: isinstance(attn, Attention))

    def attending(cache: Tensor, case: str = "dense") -> Any:
        name, rope, _, more = ATTENTIONS[case]
        layer = build(name, rope, **more)
        layer.attn = step.layer = Attention(cache.to(DEVICE, torch.bfloat16))
        return layer

    return attending


def _call(layer: Any, dims: int = 1) -> Tensor:
    """The result, also of a layer of vLLM 0.25 that writes it into a buffer."""
    call = {"positions": _positions(dims), "hidden_states": rows(TOKENS, HIDDEN)}
    if "output" not in inspect.signature(layer.forward).parameters:
        return layer(**call)  # type: ignore[no-any-return]
    output = torch.empty_like(call["hidden_states"])
    assert layer(**call, output=output) is None
    return output


def _run(layer: Any, dims: int = 1) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """Returns the result, the cache behind it, and the q, k and v of the attention. The cache starts empty."""
    layer.attn.kv_cache.zero_()
    result = _call(layer, dims)
    return result, layer.attn.kv_cache.clone(), layer.attn.impl.seen


def _take(layer: Any, config: Any = None) -> None:
    config = config or _compiled_config()
    qk_norm_rope_layer.take(qk_norm_rope_layer.survey([layer], config, DEVICE), config)


@pytest.mark.parametrize("case", ATTENTIONS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_cache_holds_what_vllm_would_have_written(attending: Any, layout: str, case: str) -> None:
    layer, dims = attending(LAYOUTS[layout](), case), ATTENTIONS[case][2]
    _take(layer)
    result, cache, (q, k, v) = _run(layer, dims)
    assert not layer.attn.impl.wrote
    written = torch.zeros_like(cache)
    layer.attn.impl.do_kv_cache_update(layer.attn, k, v, written, torch.tensor(SLOTS))
    assert cache.any()
    assert torch.equal(cache, written)
    installed.undo()
    expected, of_vllm_cache, of_vllm_qkv = _run(layer, dims)
    for found, own in ((result, expected), (cache, of_vllm_cache), *zip((q, k, v), of_vllm_qkv, strict=True)):
        torch.testing.assert_close(found, own, rtol=2**-6, atol=2**-4)


@pytest.mark.parametrize(
    "cache",
    [
        torch.zeros(2, BLOCKS, BLOCK, KV_HEADS, HEAD + 8, dtype=BF16)[..., :HEAD].transpose(0, 1).transpose(1, 2),
        torch.zeros(BLOCKS, KV_HEADS, 3, 2, BLOCK, HEAD, dtype=BF16)[:, :, 1].permute(0, 2, 3, 1, 4),
        torch.zeros(BLOCKS, 2, BLOCK, KV_HEADS, HEAD, dtype=torch.float16),
    ],
    ids=["layout", "key and value of a head in turns", "dtype"],
)
def test_a_cache_that_is_not_known_is_written_by_vllm(
    attending: Any, step: Any, cache: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = attending(LAYOUTS["until 0.31"]())
    _take(layer)
    asked: list[Tensor] = []
    monkeypatch.setattr(layer.attn.impl, "do_kv_cache_update", lambda *given: asked.append(given[3]))
    layer.attn.kv_cache = cache
    layer(_positions(1), rows(TOKENS, HIDDEN))
    assert asked[0] is cache


def test_with_more_slots_than_tokens_the_cache_is_written_by_vllm(attending: Any, step: Any) -> None:
    layer = attending(LAYOUTS["until 0.31"]())
    _take(layer)
    step.slots = torch.tensor([*range(TOKENS), -1], device=DEVICE)
    _run(layer)
    assert layer.attn.impl.wrote


def test_the_write_imports_nothing_at_each_call() -> None:
    assert not imports_at_each_call(cache_write._norm_rotate_and_write)


def test_while_memory_is_profiled_nothing_is_written(attending: Any, step: Any) -> None:
    layer = attending(LAYOUTS["until 0.31"]())
    _take(layer)
    step.slots = None
    assert not _run(layer)[1].any()
    assert not layer.attn.impl.wrote


@pytest.mark.parametrize("case", ATTENTIONS)
def test_vllms_graph_is_split_at_the_write_and_nothing_lies_between_it_and_the_attention(
    attending: Any, case: str
) -> None:
    from vllm.compilation.backends import split_graph

    layer, config, graphs = attending(LAYOUTS["until 0.31"](), case), _compiled_config(), []
    _take(layer, config)

    def keep(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    with torch.inference_mode():
        compiled = torch.compile(layer, backend=keep, fullgraph=True)
        dims = ATTENTIONS[case][2]
        torch.testing.assert_close(_call(compiled, dims), _run(layer, dims)[0])
    _, pieces = split_graph(graphs[0], config.compilation_config.splitting_ops)
    (split,) = (piece.graph for piece in pieces if piece.is_splitting_graph)
    called = [str(node.target) for node in split.graph.nodes if node.op == "call_function"]
    assert called == [f"serving_ops.{cache_write.OP}", "vllm.unified_attention_with_output"]


def test_undo_splits_as_before_and_leaves_the_write_to_vllm(attending: Any) -> None:
    layer, config = attending(LAYOUTS["until 0.31"]()), _compiled_config()
    before = list(config.compilation_config.splitting_ops)
    _take(layer, config)
    _take(layer, config)
    assert config.compilation_config.splitting_ops == [*before, cache_write.QUALIFIED]
    installed.undo()
    assert config.compilation_config.splitting_ops == before
    _run(layer)
    assert layer.attn.impl.wrote


def test_the_compile_cache_key_says_who_writes(attending: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = attending(LAYOUTS["until 0.31"]())
    _take(layer)
    ours = compile_cache.compile_key()
    monkeypatch.setattr(cache_write, "is_for", lambda *_: False)
    _take(layer)
    assert compile_cache.compile_key() != ours


def _of(config: Any, **changes: Any) -> Any:
    vars(config.compilation_config).update(changes)
    return config


CUDA, BF16 = torch.device("cuda"), torch.bfloat16
EAGER = {"mode": CompilationMode.NONE, "splitting_ops": []}


@pytest.fixture
def attn(monkeypatch: pytest.MonkeyPatch) -> Attention:
    """A layer whose backend writes by vLLM's own code."""
    from vllm.v1.attention.backends import flash_attn

    monkeypatch.setattr(FlashAttentionImpl, WRITE, flash_attn.FlashAttentionImpl.do_kv_cache_update)
    return Attention(torch.zeros(0))


def test_it_is_for_flash_attention_on_cuda_compiled_in_pieces_or_not_at_all(attn: Attention) -> None:
    assert cache_write.is_for(attn, BF16, _compiled_config(), CUDA)
    assert cache_write.is_for(attn, BF16, _of(_compiled_config(), **EAGER), CUDA)


@pytest.mark.parametrize(
    "changes",
    [
        {"kv_sharing_target_layer_name": "layers.0.attn"},
        {"attn_type": "encoder"},
        {"kv_cache_torch_dtype": torch.float8_e4m3fn},
        {"head_size_v": 64},
        {"query_quant": object()},
        {"calculate_kv_scales": True},
        {"use_direct_call": True},
        {"impl": object()},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_layer_that_writes_otherwise_is_left_to_vllm(attn: Attention, changes: dict[str, Any]) -> None:
    vars(attn).update(changes)
    assert not cache_write.is_for(attn, BF16, _compiled_config(), CUDA)


@pytest.mark.parametrize("name", cache_write.ASKED)
def test_where_vllm_lacks_what_each_call_asks_for_it_writes(
    attn: Attention, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(of_vllm, name)
    assert not cache_write.is_for(attn, BF16, _compiled_config(), CUDA)


@pytest.mark.parametrize(("name", "other"), [("ATTENDS", "attention_with_output"), ("WRITTEN", "behind")])
def test_where_vllms_attention_cannot_wait_for_our_write_vllm_writes(
    attn: Attention, name: str, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_write, name, other)
    assert not cache_write.is_for(attn, BF16, _compiled_config(), CUDA)


@pytest.mark.parametrize(
    "changes",
    [
        {"splitting_ops": []},
        {"splitting_ops": None},
        {"use_inductor_graph_partition": True},
        {"mode": CompilationMode.STOCK_TORCH_COMPILE},
    ],
    ids=str,
)
def test_a_graph_that_vllm_does_not_split_at_its_own_write_is_left_to_vllm(
    attn: Attention, changes: dict[str, Any]
) -> None:
    assert not cache_write.is_for(attn, BF16, _of(_compiled_config(), **changes), CUDA)


def test_a_cache_that_is_spread_over_workers_is_left_to_vllm(attn: Attention) -> None:
    config = _compiled_config()
    config.parallel_config.decode_context_parallel_size = 2
    assert not cache_write.is_for(attn, BF16, config, CUDA)


def _another_step(self: Any, *given: Any) -> None:
    torch.ops.vllm.unified_kv_cache_update(*given, self.layer_name)
    reshape_and_cache_flash(rotated(*given))  # type: ignore[name-defined] # noqa: F821


def _around(*given: Any, own: Any = print) -> Any:
    return own(*given)


@pytest.mark.parametrize(("owner", "method"), [(Attention, "forward"), (FlashAttentionImpl, WRITE)])
@pytest.mark.parametrize("other", [_another_step, _around])
def test_code_that_is_not_what_ours_stands_in_for_stays_vllms(
    attn: Attention, owner: type, method: str, other: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, method, other)
    assert not cache_write.is_for(attn, BF16, _compiled_config(), CUDA)


def test_on_several_gpus_each_worker_writes_its_own_cache(attn: Attention) -> None:
    config = _compiled_config()
    config.parallel_config.world_size = 2
    assert cache_write.is_for(attn, BF16, config, CUDA)


def test_on_cpu_and_in_other_classes_vllm_writes(attn: Attention) -> None:
    class OfAnotherPlugin(Attention):
        pass

    assert not cache_write.is_for(attn, BF16, _compiled_config(), torch.device("cpu"))
    assert not cache_write.is_for(OfAnotherPlugin(torch.zeros(0)), BF16, _compiled_config(), CUDA)


@pytest.mark.parametrize("name", ["attn_type", "kv_sharing_target_layer_name", "kv_cache_torch_dtype", "query_quant"])
def test_vllms_layer_still_has_what_is_asked_of_it(name: str) -> None:
    assert name in of_vllm.Attention.__init__.__code__.co_names


def test_vllms_own_write_is_the_operator_that_we_stand_in_for() -> None:
    assert hasattr(torch.ops.vllm, cache_write.VLLM_WRITES.split("::")[1])
