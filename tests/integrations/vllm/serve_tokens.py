"""Run by path, in a process of its own: serve prompts with vLLM and write what came out, and what ran, as JSON.

Usage: serve_tokens.py MODEL OUT {eager,compiled} [MODULE of vLLM to hide from serving_ops]
ENGINE_ARGS in the environment: more arguments of vLLM's, as JSON.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

NUM_PROMPTS = 6
NUM_TOKENS = 64
TOP_LOGPROBS = 8
SEED = 7


def prompts(vocab: int) -> list[dict[str, list[int]]]:
    """Prompts of different lengths, from a seed."""
    import random

    draw = random.Random(SEED)
    lengths = [5, 17, 33, 64, 100, 128][:NUM_PROMPTS]
    return [{"prompt_token_ids": [draw.randrange(3, vocab) for _ in range(length)]} for length in lengths]


def worker_state(worker: Any) -> dict[str, Any]:
    """Run in a worker: its process, the classes of its norms, and, if the plugin loaded serving_ops there, the counters
    and the factor of vLLM's compile-cache key."""
    import os
    import sys
    from collections import Counter

    norms = Counter(type(m).__name__ for m in worker.get_model().modules() if "RMSNorm" in type(m).__name__)
    counters = sys.modules.get("serving_ops.counters")
    cache = sys.modules.get("serving_ops.integrations.vllm.compile_cache")
    return {
        "pid": os.getpid(),
        "norms": dict(norms),
        "calls": counters.snapshot() if counters else None,
        "compile_key": cache.compile_key() if cache else None,
    }


ON_CUDA = {
    "gpu_memory_utilization": 0.1,
    "kv_cache_memory_bytes": 1 << 30,
    "attention_backend": "FLASH_ATTN",
    "gdn_prefill_backend": "triton",
}
"""A small model shares the GPU with other tests, and needs no kernels beyond vLLM's own and Triton's."""


def device_options() -> dict[str, Any]:
    """Of ON_CUDA, what this vLLM knows."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.platforms import current_platform

    if not current_platform.is_cuda():
        return {}
    return {name: value for name, value in ON_CUDA.items() if name in EngineArgs.__dataclass_fields__}


def model_options(model: Path) -> dict[str, Any]:
    """Of a model that sees, only the language model is served."""
    sees = "vision_config" in json.loads((model / "config.json").read_text())
    return {"language_model_only": True} if sees else {}


def answers(outputs: list[Any]) -> dict[str, Any]:
    """Tokens and logprobs, a list for each prompt."""
    completions = [output.outputs[0] for output in outputs]
    return {
        "tokens": [list(completion.token_ids) for completion in completions],
        "logprobs": [
            [{str(token): entry.logprob for token, entry in step.items()} for step in completion.logprobs or []]
            for completion in completions
        ],
    }


def fuse_q_and_k() -> None:
    """Have `qk_norm_rope` take every attention layer that it fits, whatever runs it on this device."""
    from serving_ops.integrations.vllm import qk_norm_rope_layer

    qk_norm_rope_layer.why_reference = lambda specs: None
    qk_norm_rope_layer._why_slower = lambda x: None


def main() -> None:
    model, out, mode, *hide = sys.argv[1], Path(sys.argv[2]), *sys.argv[3:]
    if hide:
        sys.path.insert(0, str(Path(__file__).parent))  # PYTHONSAFEPATH leaves it out
        import hidden

        hidden.hide(*hide)
    if os.environ.get("FUSE_Q_AND_K"):
        fuse_q_and_k()
    from vllm import LLM, SamplingParams

    more = json.loads(os.environ.get("ENGINE_ARGS", "{}"))
    llm = LLM(
        model=model,
        skip_tokenizer_init=True,
        enforce_eager=mode == "eager",
        max_model_len=256,
        max_num_seqs=NUM_PROMPTS,
        enable_prefix_caching=False,
        disable_log_stats=True,
        **{**device_options(), **model_options(Path(model)), **more},
    )
    asked = prompts(llm.llm_engine.model_config.get_vocab_size())
    params = SamplingParams(
        temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True, logprobs=TOP_LOGPROBS, detokenize=False
    )
    before = llm.collective_rpc(worker_state)
    result = answers(llm.generate(asked, params, use_tqdm=False))
    result |= {"before": before, "after": llm.collective_rpc(worker_state)}
    if os.environ.get("VLLM_BATCH_INVARIANT") == "1":
        one_by_one = [llm.generate([prompt], params, use_tqdm=False)[0] for prompt in asked]
        result["alone"] = answers(one_by_one)
    out.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
