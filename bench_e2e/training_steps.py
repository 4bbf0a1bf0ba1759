"""`python -m serving_ops.bench_e2e training-steps`: training steps of a Hugging Face model, its own norms and ours.

Two models with the same random weights, side by side and in turns: forward, backward and AdamW on one batch of random
tokens.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from serving_ops import nn
from serving_ops.bench_e2e import environment, presets, result_file, session, turns
from serving_ops.bench_e2e.comparison import BASELINE, OURS, Comparison
from serving_ops.bench_e2e.options import at_least_1, check_gpu, check_variables, check_writable
from serving_ops.bench_e2e.stats import RATIO_METHOD

KIND = "training-steps"
COMMAND = f"python -m serving_ops.bench_e2e {KIND}"
STEP = "step_ms"
LABELS = {STEP: "step"}
WARM_UP = 3  # steps: the first ones compile, and allocate what later ones reuse
BATCH = {"cpu": "2x128", "cuda": "4x2048"}  # sequences x tokens
LEARNING_RATE = 1e-4


def main(argv: Sequence[str]) -> int:
    chosen = _parse(argv)
    steps = Steps(chosen)
    return session.run(steps.run, lambda: steps.result(list(argv)), chosen.out)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    add = parser.add_argument
    add("--preset", choices=("dense", "hybrid"), default="dense", help="Qwen3, or a Qwen3-Next")
    add("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    add("--batch", type=_batch, help=f"sequences x tokens; default {BATCH['cpu']}, on CUDA {BATCH['cuda']}")
    add("--layers", type=at_least_1, help="instead of the preset's")
    add("--rounds", type=at_least_1, default=10, help="a step of each model a round; default 10")
    add("--compiled", action="store_true", help="both models under torch.compile")
    add("--out", type=Path, help="the JSON; default bench_results/training-steps-<device>-<preset>.json")
    options = parser.parse_args(argv)
    check_variables(parser)
    check_gpu(parser, options.device)
    if not importlib.util.find_spec("transformers"):
        parser.error("transformers is not installed: pip install transformers")
    options.out = options.out or Path("bench_results") / f"{KIND}-{options.device}-{options.preset}.json"
    check_writable(parser, options.out)
    options.batch = options.batch or _batch(BATCH[options.device])
    return options


def _batch(text: str) -> tuple[int, int]:
    sequences, _, tokens = text.partition("x")
    return at_least_1(sequences), at_least_1(tokens)


@dataclass
class Steps:
    """Two models and what their steps took. report: what the result says of them."""

    chosen: argparse.Namespace
    report: dict[str, Any] = field(default_factory=dict)
    pairs: dict[str, list[dict[str, float]]] = field(default_factory=lambda: {BASELINE: [], OURS: []})
    losses: dict[str, list[float]] = field(default_factory=lambda: {BASELINE: [], OURS: []})

    def run(self, work: Path) -> None:
        chosen = self.chosen
        native = _build(chosen.preset, chosen.device, chosen.layers)
        ours = copy.deepcopy(native)
        self.report = {
            "layers": native.config.num_hidden_layers,
            "parameters": sum(parameter.numel() for parameter in native.parameters()),
            "batch": list(chosen.batch),
            "compiled": chosen.compiled,
            "replaced": nn.replace_norms(ours).replaced,
        }
        torch.manual_seed(1)
        tokens = torch.randint(native.config.vocab_size, chosen.batch, device=chosen.device)
        steps = {name: _step(m, tokens, chosen.compiled) for name, m in ((BASELINE, native), (OURS, ours))}
        for number, name in turns.order(list(steps), WARM_UP + chosen.rounds):
            start = perf_counter()
            self.losses[name].append(steps[name]())
            if number > WARM_UP:
                self.pairs[name].append({STEP: 1000 * (perf_counter() - start)})

    def result(self, words: list[str]) -> Comparison | None:
        session.drop_unpaired(self.pairs)
        if not self.pairs[OURS]:
            return None
        report, losses, (sequences, tokens) = self.report, self.losses, self.chosen.batch
        method = (
            f"{report['layers']} layers, {report['parameters'] / 1e6:.0f} million parameters, {sequences} x {tokens} "
            f"tokens, {sum(report['replaced'].values())} norms replaced; loss of step {len(losses[OURS])} "
            f"{losses[BASELINE][-1]:.4f} and {losses[OURS][-1]:.4f}; median over {len(self.pairs[OURS])} steps in "
            f"turns [lowest-highest]; ratio: {RATIO_METHOD}."
        )
        run = result_file.of_run(KIND, environment.command_line(COMMAND, words), self.chosen.device)
        run |= report | {"losses": losses, "model": f"preset {self.chosen.preset}", "engine": "transformers"}
        run |= {"mode": f"{'compiled' if self.chosen.compiled else 'eager'}, bfloat16", "method": method}
        return Comparison(run, LABELS, self.pairs, {})


def _build(preset: str, device: str, layers: int | None) -> Any:
    import transformers

    config = presets.preset_config(preset, "cpu" if preset == "hybrid" else device)
    config["num_hidden_layers"] = layers or config["num_hidden_layers"]
    torch.manual_seed(0)
    with torch.device(device):
        made = transformers.AutoConfig.for_model(config.pop("model_type"), **config)
        return transformers.AutoModelForCausalLM.from_config(made, dtype=torch.bfloat16).train()


def _step(model: Any, tokens: torch.Tensor, compiled: bool) -> Callable[[], float]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)
    forward = torch.compile(model) if compiled else model

    def step() -> float:
        loss = forward(input_ids=tokens, labels=tokens, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.detach())  # waits for the device

    return step
