"""What each engine is built with, so that several fit beside each other and none answers from a cache."""

import argparse
import json
import os
from typing import Any

from serving_ops.bench_e2e import presets
from serving_ops.bench_e2e.comparison import BASELINE
from serving_ops.bench_e2e.step_engine import StepLoad

HOST = "127.0.0.1"
ENGINE_DEFAULTS = {"vllm": {"VLLM_NO_USAGE_STATS": "1", "VLLM_HOST_IP": HOST}, "sglang": {}}
# Threads stay with vLLM's own choice, which spares a core for its server: on 2 cores TPOT is the same as with both
# bound and its p99 is 14% above the median instead of 18 to 30%; TTFT is nearly twice as long.
CPU_DEFAULTS = {
    "vllm": {"VLLM_CPU_KVCACHE_SPACE": "1"},  # GiB
    "sglang": {"SGLANG_USE_CPU_ENGINE": "1"},
}
MAX_NUM_SEQS = 256
"""Of vLLM on CUDA; a hybrid's state needs room in the cache for each, and its own 1024 do not fit into a few GiB."""
KV_CACHE_GIB = 4  # of each vLLM on CUDA
SPARE_TOKENS = 64  # room in the context beside prompt and answer
SPARE = 2  # room in SGLang's cache, over what is asked at once


def of(chosen: argparse.Namespace, engines: int, context: int, together: int) -> dict[str, Any]:
    """Arguments by their names in Python; what the user gave comes last, and wins.

    engines: alive at once. context: tokens of the longest request. together: requests at once. Prefixes are not cached:
    a prompt that was warmed up would skip its prefill.
    """
    room, on_gpu = context + SPARE_TOKENS, chosen.device == "cuda"
    if chosen.engine == "sglang":  # it would fill the memory with its cache, and idle, poll on a core
        own = {"context_length": room, "disable_radix_cache": True, "sleep_on_idle": True}
        own |= {"max_running_requests": together, "max_total_tokens": SPARE * room * together}
        own |= {"disable_cuda_graph": bool(chosen.eager)} if on_gpu else presets.SGLANG_ON_CPU
    else:
        own = {"enforce_eager": bool(chosen.eager), "max_model_len": room, "enable_prefix_caching": False}
        if on_gpu:  # a share of what vLLM wants to find free at its start, and a cache of a fixed size
            own |= {"gpu_memory_utilization": round(0.9 / engines, 3), "kv_cache_memory_bytes": KV_CACHE_GIB * 2**30}
            own |= {"max_num_seqs": max(MAX_NUM_SEQS, together)}
    return {**own, **chosen.model_args, **chosen.engine_args}


def of_step(chosen: argparse.Namespace, load: StepLoad) -> dict[str, Any]:
    """The same for an engine in process, which gets tokens and is asked with `load`."""
    together, prompt = max(load.batch_sizes), load.decode_prompt_len
    own: dict[str, Any] = {"skip_tokenizer_init": True}
    if chosen.engine == "vllm":
        prefill = max(load.context + SPARE_TOKENS, together * prompt)
        own |= {"max_num_batched_tokens": prefill, "disable_log_stats": True}
    else:  # the plugin's line is at level info; graphs are captured for the sizes that are asked for, and no others
        asked_at_once = max(load.context, together * (prompt + load.decode_steps + 1))
        own |= {"log_level": "info", "max_total_tokens": SPARE * asked_at_once}
        if chosen.device == "cuda" and not chosen.eager:
            prefills = {*load.prompt_lens, *(size * prompt for size in load.batch_sizes)}
            own |= {"cuda_graph_bs_decode": sorted(load.batch_sizes), "cuda_graph_bs_prefill": sorted(prefills)}
    return {**of(chosen, 2 * chosen.engines, load.context, together), **own, **chosen.engine_args}


def gpus(arguments: dict[str, Any]) -> int:
    """Over which an engine with these arguments spreads each layer."""
    return int(arguments.get("tensor_parallel_size", arguments.get("tp_size", 1)))


def as_words(engine: str, arguments: dict[str, Any]) -> list[str]:
    """Arguments by name as words of a server's command line. A flag that is False has a word of its own in vLLM."""
    words = []
    for argument, value in arguments.items():
        option = argument.replace("_", "-")
        if value is False:
            words += [f"--no-{option}"] if engine == "vllm" else []
        else:
            values = [] if value is True else value if isinstance(value, list) else [value]
            words += [f"--{option}", *(json.dumps(one) if isinstance(one, dict) else str(one) for one in values)]
    return words


def environment_of(variant: str, device: str, offline: bool, engine: str = "vllm") -> dict[str, str]:
    """The caller's environment, made local and quiet; what the caller set wins, for our variant also SERVING_OPS.

    Keys for APIs are left out: with one in its environment, the server would refuse the bench's own client.
    """
    defaults = {"HF_HUB_OFFLINE": "1" if offline else "0", **ENGINE_DEFAULTS[engine]}
    if device == "cpu":
        defaults |= CPU_DEFAULTS[engine]
    inherited = {name: value for name, value in {**defaults, **os.environ}.items() if not name.endswith("API_KEY")}
    python_path = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    return {
        **inherited,
        "SERVING_OPS": "off" if variant == BASELINE else os.environ.get("SERVING_OPS", "auto"),
        "PYTHONPATH": os.pathsep.join(map(os.path.abspath, python_path)),
        "PYTHONSAFEPATH": "1",  # a checkout in the working directory shadows nothing
        "PYTHONUNBUFFERED": "1",
        "NO_PROXY": f"{HOST},localhost",
        "no_proxy": f"{HOST},localhost",
    }
