"""What engines in turns are built with."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from serving_ops.bench_e2e.turns import engine_arguments
from serving_ops.bench_e2e.turns.load import Load

LOAD = Load(batch_sizes=(1, 16), prompt_lens=(512, 8192), decode_steps=96)


def _of(engine: str, **more: Any) -> dict[str, Any]:
    chosen = {"model": None, "preset": "hybrid", "quantization": None, "device": "cuda", "eager": False, "engines": 4}
    chosen |= {"engine_args": {}, "kv_cache_gib": 4.0, "batch_sizes": LOAD.batch_sizes}
    return engine_arguments.of(SimpleNamespace(engine=engine, **(chosen | more)), LOAD, "folder")


def test_sglang_captures_graphs_for_the_sizes_that_it_is_asked_for() -> None:
    arguments = _of("sglang")
    assert arguments["cuda_graph_bs_decode"] == [1, 16]
    assert arguments["cuda_graph_bs_prefill"] == [128, 512, 2048, 8192]
    assert "cuda_graph_bs_decode" not in _of("sglang", eager=True)


def test_neither_engine_answers_from_a_cache_and_both_have_room_for_the_load() -> None:
    vllm, sglang = _of("vllm"), _of("sglang")
    assert vllm["enable_prefix_caching"] is False
    assert sglang["disable_radix_cache"] is True
    assert vllm["max_model_len"] == LOAD.context
    assert sglang["max_total_tokens"] >= LOAD.context
    assert vllm["load_format"] == sglang["load_format"] == "dummy"


def test_each_engine_of_vllms_asks_for_its_share_of_the_gpu() -> None:
    assert _of("vllm")["gpu_memory_utilization"] == round(0.9 / 8, 3)
    assert _of("vllm", engines=3)["gpu_memory_utilization"] == round(0.9 / 6, 3)


def test_only_a_quantization_while_loading_is_told_to_the_engine() -> None:
    assert _of("vllm", preset="dense", quantization="fp8-online")["quantization"] == "fp8"
    assert "quantization" not in _of("vllm", preset="dense", quantization="fp8-token")


def test_what_the_user_gives_wins() -> None:
    for engine in ("vllm", "sglang"):
        assert _of(engine, engine_args={"load_format": "auto"})["load_format"] == "auto"
