"""Run by path, in a process of its own: serve prompts with SGLang on a GPU, together and alone, and write them as JSON.

Usage: cuda_tokens.py MODEL OUT ENGINE_ARGUMENTS_AS_JSON
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from sglang_tokens import NUM_TOKENS, prompts

ENGINE: dict[str, Any] = {
    "skip_tokenizer_init": True,
    "attention_backend": "triton",
    "sampling_backend": "pytorch",
    "grammar_backend": "none",
    "disable_radix_cache": True,
    "max_total_tokens": 4096,
    "max_running_requests": 8,
    "cuda_graph_bs_decode": [1, 4],
    "cuda_graph_bs_prefill": [128, 512],
    "log_level": "info",
}
"""Attention and sampling that need no library beyond SGLang's own kernels; graphs for few sizes start faster."""


def main() -> None:
    model, out, more = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    import sglang

    engine = sglang.Engine(model_path=model, **ENGINE, **more)

    def serve(rows: list[list[int]]) -> list[dict[str, Any]]:
        sampling = {"temperature": 0.0, "max_new_tokens": NUM_TOKENS, "ignore_eos": True}
        served = engine.generate(input_ids=rows, sampling_params=sampling, return_logprob=True)
        return [
            {"tokens": one["output_ids"], "logprobs": [found[0] for found in one["meta_info"]["output_token_logprobs"]]}
            for one in served
        ]

    together = serve(prompts())
    alone = [serve([prompt])[0] for prompt in prompts()]
    out.write_text(json.dumps({"together": together, "alone": alone}))
    engine.shutdown()


if __name__ == "__main__":
    main()
