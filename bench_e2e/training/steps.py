"""`python -m serving_ops.bench_e2e --training steps`: training steps of a Hugging Face model, its own norms and ours.

Two models with the same random weights, side by side and in turns: forward, backward and AdamW on one batch of random
tokens.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from serving_ops import nn
from serving_ops.bench_e2e import envelope, environment, presets, table
from serving_ops.bench_e2e.arguments import at_least_1, check_writable
from serving_ops.bench_e2e.cli import INTERRUPTED, end_as_if_interrupted
from serving_ops.bench_e2e.ops.bench import check_gpu
from serving_ops.bench_e2e.options import check_variables
from serving_ops.bench_e2e.report import ratio_text, spread_text
from serving_ops.bench_e2e.result import BASELINE, OURS
from serving_ops.bench_e2e.saving import save
from serving_ops.bench_e2e.stats import RATIO_METHOD, paired_ratio, spread

COMMAND = "python -m serving_ops.bench_e2e --training steps"
WARM_UP = 3  # steps: the first ones compile, and allocate what later ones reuse
BATCH = {"cpu": "2x128", "cuda": "4x2048"}  # sequences x tokens
LEARNING_RATE = 1e-4


def main(argv: Sequence[str]) -> int:
    options = _parse(argv)
    report: dict[str, Any] = {}
    end_as_if_interrupted()
    try:
        measure(options, environment.command_line(COMMAND, argv), report)
    except KeyboardInterrupt:
        print("interrupted")
        return INTERRUPTED
    finally:
        if all(report.get("step_ms", {"": []}).values()):
            path = save(_whole_rounds(report), options.out)
            print(f"written to {path}; for a page: {table.COMMAND} {path} --readme PAGE\n")
    print(markdown(report))
    return 0


def _whole_rounds(report: dict[str, Any]) -> dict[str, Any]:
    """Without the step that only one of the models took before it was interrupted."""
    times = report["step_ms"]
    whole = min(map(len, times.values()))
    return {**report, "step_ms": {name: taken[:whole] for name, taken in times.items()}}


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--preset", choices=("dense", "hybrid"), default="dense", help="Qwen3, or a Qwen3-Next")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--batch", type=_batch, help=f"sequences x tokens; default {BATCH['cpu']}, on CUDA {BATCH['cuda']}"
    )
    parser.add_argument("--layers", type=at_least_1, help="instead of the preset's")
    parser.add_argument("--rounds", type=at_least_1, default=10, help="a step of each model a round; default 10")
    parser.add_argument("--compiled", action="store_true", help="both models under torch.compile")
    parser.add_argument("--out", type=Path, help="the JSON; default bench_results/steps-<device>-<preset>.json")
    options = parser.parse_args(argv)
    check_variables(parser)
    check_gpu(parser, options.device)
    if not importlib.util.find_spec("transformers"):
        parser.error("transformers is not installed: pip install transformers")
    options.out = options.out or Path("bench_results") / f"steps-{options.device}-{options.preset}.json"
    check_writable(parser, options.out)
    options.batch = options.batch or _batch(BATCH[options.device])
    return options


def _batch(text: str) -> tuple[int, int]:
    sequences, _, tokens = text.partition("x")
    return at_least_1(sequences), at_least_1(tokens)


def measure(options: argparse.Namespace, command: str, report: dict[str, Any]) -> None:
    """Fills `report`; its times grow while the steps are taken."""
    native = _build(options.preset, options.device, options.layers)
    ours = copy.deepcopy(native)
    replaced = nn.replace_norms(ours).replaced
    torch.manual_seed(1)
    tokens = torch.randint(native.config.vocab_size, options.batch, device=options.device)
    steps = {name: _step(m, tokens, options.compiled) for name, m in ((BASELINE, native), (OURS, ours))}
    run = envelope.of_run(command)
    report |= {
        "format": 1,
        **run,
        "hardware": asdict(run["hardware"]),
        "model": f"preset {options.preset}",
        "layers": native.config.num_hidden_layers,
        "parameters": sum(parameter.numel() for parameter in native.parameters()),
        "batch": list(options.batch),
        "device": options.device,
        "compiled": options.compiled,
        "replaced": replaced,
        "step_ms": {name: [] for name in steps},
        "losses": {name: [] for name in steps},
    }
    _in_turns(steps, options.rounds, report["step_ms"], report["losses"])


def _build(preset: str, device: str, layers: int | None) -> Any:
    import transformers

    config = dict(presets.QWEN3_NEXT if preset == "hybrid" else presets.preset_config(preset, device))
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


def _in_turns(
    steps: dict[str, Callable[[], float]], rounds: int, times: dict[str, list[float]], losses: dict[str, list[float]]
) -> None:
    """Milliseconds a step, everyone once a round and first in turn; the losses of all steps."""
    names = list(steps)
    for number in range(-WARM_UP, rounds):
        for name in names if number % 2 else names[::-1]:
            start = perf_counter()
            losses[name].append(steps[name]())
            if number >= 0:
                times[name].append(1000 * (perf_counter() - start))


def render(path: Path) -> str:
    """A result file as Markdown."""
    return markdown(json.loads(path.read_text()))


def markdown(report: dict[str, Any]) -> str:
    times, losses = report["step_ms"], report["losses"]
    versions, hardware = report["versions"], report["hardware"]
    machine = hardware["gpu"] if report["device"] == "cuda" else f"{hardware['cpu']}, {hardware['cores']} cores"
    mode = "compiled" if report["compiled"] else "eager"
    ratio = ratio_text(paired_ratio(times[BASELINE], times[OURS]))
    cells = [spread_text(spread(times[name])) for name in (BASELINE, OURS)]
    last = [f"{losses[name][-1]:.4f}" for name in (BASELINE, OURS)]
    sequences, tokens = report["batch"]
    lines = [
        f"**{report['model']}, {mode}, bfloat16**: transformers {versions['transformers']}, torch {versions['torch']}, "
        f"{machine}, {report['date'][:10]}",
        "",
        f"| | {BASELINE} | {OURS} | {OURS} / {BASELINE}, 95% interval |",
        "| --- | ---: | ---: | ---: |",
        f"| step, ms | {cells[0]} | {cells[1]} | {ratio} |",
        f"| loss of step {len(losses[OURS])} | {last[0]} | {last[1]} | |",
        "",
        f"{report['layers']} layers, {report['parameters'] / 1e6:.0f} million parameters, {sequences} x {tokens} "
        f"tokens, {sum(report['replaced'].values())} norms replaced; median over {len(times[OURS])} steps in turns "
        f"[lowest-highest]; ratio: {RATIO_METHOD}. `{report['command']}`",
    ]
    return "\n".join(lines)
