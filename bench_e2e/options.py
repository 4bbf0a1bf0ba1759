"""The options that benches of served models share, and what they refuse before anything starts."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from serving_ops import settings
from serving_ops.bench_e2e import arguments, environment, presets, redact, result_file, smollm2
from serving_ops.bench_e2e.arguments import above_0, at_least_1, check_writable, engine_arguments, file_name
from serving_ops.bench_e2e.engine_arguments import SPARE_TOKENS
from serving_ops.bench_e2e.environment import ENGINES

COMMAND = "python -m serving_ops.bench_e2e"
DUMMY = "dense"  # the preset for shapes


def parser(name: str, description: str) -> argparse.ArgumentParser:
    """The options of every bench that serves a model. `complete` chooses a preset where the user does not."""
    made = argparse.ArgumentParser(prog=f"{COMMAND} {name}", description=description)
    add = made.add_argument
    add("--engine", choices=ENGINES, default="vllm", help="default: %(default)s")
    model = made.add_mutually_exclusive_group()
    help = f"{smollm2.NAME} is a real model, for `serve` on vLLM the default; the others have dummy weights"
    model.add_argument("--preset", choices=(smollm2.NAME, *presets.PRESETS), help=help)
    model.add_argument("--model", type=arguments.model, help="a folder or a hub name instead of a preset")
    add("--quantization", choices=presets.QUANTIZATIONS, help="of the preset's linear layers (default: none)")
    mode = made.add_mutually_exclusive_group()
    mode.add_argument("--eager", action="store_true", default=None, help="default on CPU")
    mode.add_argument("--compiled", action="store_false", dest="eager", help="default on CUDA")
    example = 'such as {"tensor_parallel_size": 2}'
    add("--engine-args", type=engine_arguments, default={}, metavar="JSON", help=f"more for the engine, {example}")
    add("--kv-cache-gib", type=above_0, default=4.0, help="of each vLLM on CUDA (default: %(default)s)")
    add("--start-timeout", type=at_least_1, default=600, help="seconds a start may take (default: %(default)s)")
    add("--out", type=Path, default=Path("bench_results"), help="for JSON and PNG (default: %(default)s)")
    add("--name", type=file_name, help="of both files (default: date, engine, device, model and mode)")
    add("--keep-logs", action="store_true", help="keep the logs; after a failure they stay anyway")
    made.set_defaults(kind=name)
    return made


def complete(
    made: argparse.ArgumentParser,
    chosen: argparse.Namespace,
    defaults: dict[str, dict[str, Any]],
    instead: dict[str, Any],
    tokens: Callable[[argparse.Namespace], int],
) -> argparse.Namespace:
    """Checks the options and fills the defaults of the device in; `tokens` are those of the longest request."""
    check_variables(made)
    check_installed(made, chosen.engine)
    chosen.device = environment.detect_device(chosen.engine)
    chosen.preset = chosen.preset or _default_preset(chosen)
    _check_preset(made, chosen)
    if chosen.engine == "sglang" and chosen.device == "cpu" and chosen.eager is False:
        made.error("--compiled: SGLang compiles nothing on CPU")
    for option, value in {**defaults[chosen.device], **instead}.items():
        if getattr(chosen, option) is None:
            setattr(chosen, option, value)
    longest = tokens(chosen) + SPARE_TOKENS
    positions = smollm2.MAX_POSITIONS if chosen.preset == smollm2.NAME else presets.MAX_POSITIONS
    if not chosen.model and longest > positions:
        made.error(f"--preset {chosen.preset} has {positions} positions: {longest} tokens do not fit")
    mode = "eager" if chosen.eager else "compiled"
    label = redact.text(Path(chosen.model).name) if chosen.model else preset_label(chosen)
    parts = (f"{datetime.now(UTC):%Y%m%d-%H%M}", chosen.kind, chosen.engine, chosen.device, label, mode)
    chosen.name = chosen.name or "-".join(parts)
    check_writable(made, out(chosen))
    return chosen


def out(chosen: argparse.Namespace) -> Path:
    return Path(chosen.out / f"{chosen.name}.json")


def described(chosen: argparse.Namespace, words: list[str], load: Any, given: dict[str, Any]) -> dict[str, Any]:
    """What results say of a run beside their figures. load: a dataclass; given: what the engine was built with."""
    compiled = "compiled" if chosen.engine == "vllm" else "CUDA graphs"
    command = environment.command_line(f"{COMMAND} {chosen.kind}", words)
    return result_file.of_run(chosen.kind, command, chosen.device) | {
        "name": chosen.name,
        "engine": chosen.engine,
        "model": redact.text(model_label(chosen)),
        "mode": "eager" if chosen.eager else compiled,
        "load": asdict(load),
        "engine_options": redact.plain(given),
    }


def model_and_tokenizer(chosen: argparse.Namespace, work: Path) -> tuple[str, str]:
    """Where they lie: a preset is written into `work`."""
    if chosen.model:
        return chosen.model, chosen.model
    if chosen.preset == smollm2.NAME:
        folder = str(smollm2.checkpoint(chosen.quantization))
        return folder, folder
    folder = presets.write_preset(chosen.preset, work / chosen.preset, chosen.device, chosen.quantization)
    return str(folder), str(presets.tokenizer_of(folder))


def model_label(chosen: argparse.Namespace) -> str:
    """The model to a reader: a folder by its last name alone."""
    if not chosen.model:
        of_preset = smollm2.TITLE if chosen.preset == smollm2.NAME else f"preset {chosen.preset}"
        return "-".join(filter(None, (of_preset, chosen.quantization)))
    return Path(chosen.model).name if os.path.isabs(chosen.model) else str(chosen.model)


def preset_label(chosen: argparse.Namespace) -> str:
    """The preset with its quantization, as in the names of files."""
    return "-".join(filter(None, (chosen.preset, chosen.quantization)))


def check_installed(made: argparse.ArgumentParser, engine: str) -> None:
    name = ENGINES[engine]
    if environment.engine_version(engine) is None:
        made.error(f"{name.title} is not installed: {name.install}")
    if not environment.plugin_installed(engine):
        made.error(f"{name.title} would not find the serving_ops plugin: install serving-ops (pip install -e .)")


def _default_preset(chosen: argparse.Namespace) -> str:
    """The real model, or dummy weights where it cannot be had. A sentence says so."""
    quantizes = chosen.quantization is None or chosen.quantization in smollm2.QUANTIZED
    if chosen.model or chosen.kind != "serve" or chosen.engine != "vllm" or not quantizes:
        return DUMMY
    try:
        smollm2.checkpoint(chosen.quantization)
    except smollm2.Unavailable as error:
        print(f"no {smollm2.NAME}, so the preset {DUMMY} with dummy weights is served: {error}", file=sys.stderr)
        return DUMMY
    return smollm2.NAME


def _check_preset(made: argparse.ArgumentParser, chosen: argparse.Namespace) -> None:
    """Without serving_ops SGLang has no gated norm on CPU: there is nothing to compare with."""
    quantized = chosen.quantization
    of_smollm2 = chosen.preset == smollm2.NAME and quantized in smollm2.QUANTIZED
    if quantized and (chosen.model or not (of_smollm2 or chosen.preset in presets.QUANTIZED)):
        made.error(f"--quantization {quantized}: for --preset {' or '.join(_quantizing(quantized))} alone")
    if chosen.preset == smollm2.NAME and not chosen.model:
        try:
            smollm2.checkpoint(quantized)
        except smollm2.Unavailable as error:
            made.error(f"--preset {smollm2.NAME}: {error}")
    if chosen.engine != "sglang" or chosen.model:
        return
    if quantized and chosen.device == "cpu":
        made.error(f"--quantization {quantized}: SGLang quantizes nothing on CPU")
    if chosen.preset == "mamba2":
        made.error("--preset mamba2: for vLLM alone")
    if (chosen.preset, chosen.device) == ("hybrid", "cpu"):
        made.error("--preset hybrid: SGLang alone cannot run gated norms on CPU, so nothing can be compared")


def _quantizing(quantization: str) -> tuple[str, ...]:
    """The presets that have it."""
    return (*([smollm2.NAME] if quantization in smollm2.QUANTIZED else []), *presets.QUANTIZED)


def check_variables(made: argparse.ArgumentParser) -> None:
    """A variable of ours that says nothing would be recorded beside figures that it did not decide."""
    if faults := [*settings.wrong().values(), *settings.unknown()]:
        made.error("; ".join(faults))
