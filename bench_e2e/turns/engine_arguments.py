"""What each engine is built with, so that many of one kind fit beside each other and none answers from a cache."""

from __future__ import annotations

import argparse
from typing import Any

from serving_ops.bench_e2e import presets
from serving_ops.bench_e2e.server import VARIANTS
from serving_ops.bench_e2e.turns.load import Load

MAX_NUM_SEQS = 256
"""Of vLLM on CUDA; a hybrid's state needs room in the cache for each, and its own 1024 do not fit into a few GiB."""


def of(chosen: argparse.Namespace, load: Load, model: str) -> dict[str, Any]:
    """Arguments of `vllm.LLM` or `sglang.Engine`; what the user gave comes last, and wins."""
    build = _of_sglang if chosen.engine == "sglang" else _of_vllm
    preset = {} if chosen.model else _of_preset(chosen)
    return {**build(chosen, load, model), **preset, **chosen.engine_args}


def _of_preset(chosen: argparse.Namespace) -> dict[str, Any]:
    return presets.preset_engine_args(chosen.preset, chosen.device, chosen.engine, chosen.quantization)


def _of_vllm(chosen: argparse.Namespace, load: Load, model: str) -> dict[str, Any]:
    """Prefixes are not cached: a prompt that was warmed up would skip its prefill."""
    return {
        "model": model,
        "skip_tokenizer_init": True,
        "enforce_eager": chosen.eager,
        "max_model_len": load.context,
        "max_num_batched_tokens": max(load.context, max(load.batch_sizes) * load.decode_prompt_len),
        "enable_prefix_caching": False,
        "disable_log_stats": True,
        **(_vllm_on_gpu(chosen) if chosen.device == "cuda" else {}),
    }


def _vllm_on_gpu(chosen: argparse.Namespace) -> dict[str, Any]:
    """Each engine takes a cache of a fixed size, and its share of what vLLM wants to find free at its start."""
    engines = chosen.engines * len(VARIANTS)
    return {
        "gpu_memory_utilization": round(0.9 / engines, 3),
        "kv_cache_memory_bytes": int(chosen.kv_cache_gib * 2**30),
        "max_num_seqs": max(MAX_NUM_SEQS, *chosen.batch_sizes),
    }


def _of_sglang(chosen: argparse.Namespace, load: Load, model: str) -> dict[str, Any]:
    """An idle scheduler sleeps, where by default it polls: it would take a core from the one whose turn it is."""
    together = max(load.batch_sizes)
    asked_at_once = max(load.context, together * (load.decode_prompt_len + load.decode_steps + 1))
    return {
        "model_path": model,
        "skip_tokenizer_init": True,
        "disable_radix_cache": True,
        "sleep_on_idle": True,
        "log_level": "info",  # of `sglang serve`; the plugin's line is at that level
        "max_running_requests": together,
        "max_total_tokens": SPARE * asked_at_once,
        **(presets.SGLANG_ON_CPU if chosen.device == "cpu" else _sglang_on_gpu(chosen, load)),
    }


SPARE = 2
"""Room in the cache, over what is asked at once."""


def _sglang_on_gpu(chosen: argparse.Namespace, load: Load) -> dict[str, Any]:
    """Graphs are captured for the sizes that are asked for, and no others: a step replays the same one either way."""
    if chosen.eager:
        return {"disable_cuda_graph": True}
    prefills = {*load.prompt_lens, *(size * load.decode_prompt_len for size in load.batch_sizes)}
    return {"cuda_graph_bs_decode": sorted(load.batch_sizes), "cuda_graph_bs_prefill": sorted(prefills)}
