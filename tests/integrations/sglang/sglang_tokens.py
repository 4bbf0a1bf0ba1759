"""Run by path, in a process of its own: serve prompts with SGLang on CPU and write what came out as JSON.

Usage: sglang_tokens.py MODEL OUT
ENGINE_ARGS in the environment: more arguments of SGLang's, as JSON.
"""

from __future__ import annotations

import json
import os
import random
import sys
from pathlib import Path
from typing import Any

NUM_TOKENS = 24
TOP_LOGPROBS = 4
LENGTHS = (5, 17, 33, 100)
VOCAB = 512
SEED = 7

ENGINE: dict[str, Any] = {
    "device": "cpu",
    "skip_tokenizer_init": True,
    "attention_backend": "torch_native",
    "sampling_backend": "pytorch",
    "grammar_backend": "none",
    "disable_cuda_graph": True,
    "disable_overlap_schedule": True,
    "disable_radix_cache": True,
    "max_total_tokens": 4096,
    "log_level": "info",
}


def prompts() -> list[list[int]]:
    """Prompts of different lengths, from a seed."""
    draw = random.Random(SEED)
    return [[draw.randrange(3, VOCAB) for _ in range(length)] for length in LENGTHS]


def main() -> None:
    model, out = sys.argv[1], Path(sys.argv[2])
    import sglang

    more = json.loads(os.environ.get("ENGINE_ARGS", "{}"))
    engine = sglang.Engine(model_path=model, **ENGINE, **more)
    sampling = {"temperature": 0.0, "max_new_tokens": NUM_TOKENS, "ignore_eos": True}
    outputs = engine.generate(input_ids=prompts(), sampling_params=sampling)
    result = {"pid": os.getpid(), "tokens": [output["output_ids"] for output in outputs]}
    out.write_text(json.dumps(result))
    engine.shutdown()


if __name__ == "__main__":
    main()
