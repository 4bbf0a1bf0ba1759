"""What each engine is built with, so that several fit beside each other and none answers from a cache."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from serving_ops.bench_e2e import presets, smollm2
from serving_ops.bench_e2e.step_load import StepLoad

MAX_NUM_SEQS = 256
"""Of vLLM on CUDA; a hybrid's state needs room in the cache for each, and its own 1024 do not fit into a few GiB."""
SPARE_TOKENS = 64
"""Room in the context beside prompt and answer."""
SPARE = 2
"""Room in SGLang's cache, over what is asked at once."""


def of(chosen: argparse.Namespace, engines: int, context: int, together: int) -> dict[str, Any]:
    """Arguments by their names in Python; what the user gave comes last, and wins.

    engines: alive at once. context: tokens of the longest request. together: requests at once.
    """
    build = _of_sglang if chosen.engine == "sglang" else _of_vllm
    preset = {} if chosen.model else _of_preset(chosen)
    return {**build(chosen, engines, context, together), **preset, **chosen.engine_args}


def of_step(chosen: argparse.Namespace, load: StepLoad) -> dict[str, Any]:
    """The same for an engine in process, which gets tokens and is asked with `load`."""
    general = of(chosen, 2 * chosen.engines, load.context, max(load.batch_sizes))
    own = _step_of_sglang(chosen, load) if chosen.engine == "sglang" else _step_of_vllm(load)
    return {**general, "skip_tokenizer_init": True, **own, **chosen.engine_args}


def _step_of_vllm(load: StepLoad) -> dict[str, Any]:
    prefill = max(load.context + SPARE_TOKENS, max(load.batch_sizes) * load.decode_prompt_len)
    return {"max_num_batched_tokens": prefill, "disable_log_stats": True}


def _step_of_sglang(chosen: argparse.Namespace, load: StepLoad) -> dict[str, Any]:
    """The plugin's line is at level info. Graphs are captured for the sizes that are asked for, and no others."""
    asked_at_once = max(load.context, max(load.batch_sizes) * (load.decode_prompt_len + load.decode_steps + 1))
    own = {"log_level": "info", "max_total_tokens": SPARE * asked_at_once}
    if chosen.device == "cpu" or chosen.eager:
        return own
    prefills = {*load.prompt_lens, *(size * load.decode_prompt_len for size in load.batch_sizes)}
    return own | {"cuda_graph_bs_decode": sorted(load.batch_sizes), "cuda_graph_bs_prefill": sorted(prefills)}


def _of_preset(chosen: argparse.Namespace) -> dict[str, Any]:
    if chosen.preset == smollm2.NAME:
        return smollm2.engine_args(chosen.quantization)
    return presets.preset_engine_args(chosen.preset, chosen.device, chosen.engine, chosen.quantization)


def _of_vllm(chosen: argparse.Namespace, engines: int, context: int, together: int) -> dict[str, Any]:
    """Prefixes are not cached: a prompt that was warmed up would skip its prefill.

    On CUDA each engine takes a cache of a fixed size, and its share of what vLLM wants to find free at its start.
    """
    on_gpu = {
        "gpu_memory_utilization": round(0.9 / engines, 3),
        "kv_cache_memory_bytes": int(chosen.kv_cache_gib * 2**30),
        "max_num_seqs": max(MAX_NUM_SEQS, together),
    }
    return {
        "enforce_eager": bool(chosen.eager),
        "max_model_len": context + SPARE_TOKENS,
        "enable_prefix_caching": False,
        **(on_gpu if chosen.device == "cuda" else {}),
    }


def _of_sglang(chosen: argparse.Namespace, engines: int, context: int, together: int) -> dict[str, Any]:
    """An idle scheduler sleeps, where by default it polls: it would take a core from the one whose turn it is.

    The size of its cache is said, since SGLang would fill the memory with it, which on CPU takes a minute.
    """
    return {
        "context_length": context + SPARE_TOKENS,
        "disable_radix_cache": True,
        "sleep_on_idle": True,
        "max_running_requests": together,
        "max_total_tokens": SPARE * (context + SPARE_TOKENS) * together,
        **(presets.SGLANG_ON_CPU if chosen.device == "cpu" else {"disable_cuda_graph": bool(chosen.eager)}),
    }


def as_words(engine: str, arguments: dict[str, Any]) -> list[str]:
    """Arguments by name as words of a server's command line. A flag that is False has a word of its own in vLLM."""
    words = []
    for argument, value in arguments.items():
        option = argument.replace("_", "-")
        if value is False:
            words += [f"--no-{option}"] if engine == "vllm" else []
        else:
            words += [f"--{option}", *([] if value is True else _texts(value))]
    return words


def _texts(value: Any) -> Sequence[str]:
    if isinstance(value, list):
        return [str(entry) for entry in value]
    return [json.dumps(value) if isinstance(value, dict) else str(value)]
