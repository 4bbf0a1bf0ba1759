"""`python -m serving_ops.bench_e2e.accuracy.engine_logits JOB`: vLLM's logits of a text, in a separate process.

JOB is a file, JSON: the engine's arguments, the tokens, and where the logits of every position but the last go.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any


def record_logits(model: Any, found: list[Any]) -> None:
    """Keep what the model's `compute_logits` returns from here on."""
    compute = model.compute_logits

    def compute_and_keep(*args: Any, **kwargs: Any) -> Any:
        logits = compute(*args, **kwargs)
        found.append(logits.cpu())
        return logits

    model.compute_logits = compute_and_keep


def of_prompt(found: list[Any], num_tokens: int) -> Any:
    """The logits of every token of the prompt but the last: vLLM computes them at once, or 1024 rows at a time.

    Its newer runners compute the last token's too. Those of the sampled token are a row apart.
    """
    import torch

    logits = torch.cat([entry for entry in found if len(entry) > 1])
    if len(logits) not in (num_tokens - 1, num_tokens):
        raise RuntimeError(f"vLLM computed logits for {[len(entry) for entry in found]} tokens of {num_tokens}")
    return logits[: num_tokens - 1]


if __name__ == "__main__":
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the model is in this process, where it can be looked at
    import torch
    from vllm import LLM, SamplingParams

    asked, found = json.loads(Path(sys.argv[1]).read_text()), []  # type: tuple[Any, list[Any]]
    engine = LLM(**asked["engine_arguments"])
    engine.apply_model(lambda model: record_logits(model, found))
    # Log-probabilities of the prompt make vLLM compute its logits; it asks for those of the sampled token apart.
    sampling = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)
    engine.generate([{"prompt_token_ids": asked["tokens"]}], sampling)
    torch.save(of_prompt(found, len(asked["tokens"])), asked["out"])
