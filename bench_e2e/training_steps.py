"""`python -m serving_ops.bench_e2e training-steps`: training steps of a Hugging Face model, its own norms and ours.

Two models with the same random weights, side by side and in turns: forward, backward and AdamW on one batch of random
tokens.
"""

import argparse
import copy
import importlib.util
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

import torch

from serving_ops import nn
from serving_ops.bench_e2e import options, presets, result_file, session
from serving_ops.bench_e2e.comparison import BASELINE, OURS, Comparison

KIND = "training-steps"
STEP = "step_ms"
WARM_UP = 3  # steps: the first ones compile, and allocate what later ones reuse
BATCH = {"cpu": (2, 128), "cuda": (4, 2048)}  # sequences, tokens
LEARNING_RATE = 1e-4


def main(argv: Sequence[str]) -> int:
    parser = options.parser(KIND, __doc__)
    add = parser.add_argument
    add("--preset", choices=("dense", "hybrid"), default="dense", help="Qwen3, or a Qwen3-Next")
    add("--batch", type=options.at_least_1, nargs=2, help="sequences, tokens; default 2 128, on CUDA 4 2048")
    add("--rounds", type=options.at_least_1, default=10, help="a step of each model a round; default 10")
    chosen = options.parse_without_engine(parser, argv)
    if not importlib.util.find_spec("transformers"):
        parser.error("transformers is not installed: pip install transformers")
    chosen.batch = chosen.batch or BATCH[chosen.device]
    run = result_file.of_run(KIND, argv, chosen.device)
    run |= {"model": f"preset {chosen.preset}", "engine": "transformers", "batch": list(chosen.batch)}
    run |= {"mode": "eager, bfloat16", "losses": {BASELINE: [], OURS: []}}
    measured = Comparison(run, {STEP: "step"})
    return session.run(lambda work: _measure(chosen, measured), measured, chosen.out)


def _measure(chosen: argparse.Namespace, measured: Comparison) -> None:
    native = _build(chosen.preset, chosen.device)
    ours = copy.deepcopy(native)
    measured.run["layers"] = native.config.num_hidden_layers
    measured.run["parameters"] = sum(parameter.numel() for parameter in native.parameters())
    measured.run["replaced"] = nn.replace_norms(ours).replaced
    torch.manual_seed(1)
    tokens = torch.randint(native.config.vocab_size, chosen.batch, device=chosen.device)
    steps = {name: _step(m, tokens) for name, m in ((BASELINE, native), (OURS, ours))}
    for number, name in session.order(list(steps), WARM_UP + chosen.rounds):
        start = perf_counter()
        measured.run["losses"][name].append(steps[name]())
        if number > WARM_UP:
            measured.pairs[name].append({STEP: 1000 * (perf_counter() - start)})
            measured.run["method"] = _method(measured.run, min(map(len, measured.pairs.values())))


def _method(run: dict[str, Any], pairs: int) -> str:
    losses, (sequences, tokens) = run["losses"], run["batch"]
    return (
        f"{run['layers']} layers, {run['parameters'] / 1e6:.0f} million parameters, {sequences} x {tokens} tokens, "
        f"{sum(run['replaced'].values())} norms replaced; loss of step {len(losses[OURS])} {losses[BASELINE][-1]:.4f} "
        f"and {losses[OURS][-1]:.4f}; median over {pairs} steps in turns [lowest-highest]"
    )


def _build(preset: str, device: str) -> Any:
    import transformers

    config = presets.preset_config(preset, "cpu" if preset == "hybrid" else device)
    torch.manual_seed(0)
    with torch.device(device):
        made = transformers.AutoConfig.for_model(config.pop("model_type"), **config)
        return transformers.AutoModelForCausalLM.from_config(made, dtype=torch.bfloat16).train()


def _step(model: Any, tokens: torch.Tensor) -> Callable[[], float]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)

    def step() -> float:
        loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.detach())  # waits for the device

    return step
