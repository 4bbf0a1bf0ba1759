"""The options of the benches, and what they refuse: it ends with a sentence and status 2 before anything starts."""

import json
import os
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from serving_ops import settings
from serving_ops.bench_e2e import environment, presets, smollm2
from serving_ops.bench_e2e.engine_arguments import SPARE_TOKENS
from serving_ops.bench_e2e.environment import COMMAND, TITLES, without_secrets
from serving_ops.doctor import DISTRIBUTIONS

DUMMY = "dense"  # the preset for shapes
MOST_BYTES = 200  # of a result's name
FITTING = f"a file in a folder that can be written, whose name ends in .json and has at most {MOST_BYTES} bytes"
# The model is an option, a server has to answer the bench's own client, and a pipeline's step has no one device time.
OF_THE_BENCH = {"model", "model_path", "api_key", "host", "port", "uds", "root_path", "served_model_name"}
OF_THE_BENCH |= {"ssl_keyfile", "ssl_certfile", "pipeline_parallel_size", "pp_size", "data_parallel_size", "dp_size"}
# A hybrid's gated norm on CPU and a Mamba-2 are nothing that SGLang alone could run: there is nothing to compare with.
NOT_ON_SGLANG = {("hybrid", "cpu"), ("mamba2", "cpu"), ("mamba2", "cuda")}


def refusal(text: str, allowed: str) -> ArgumentTypeError:
    return ArgumentTypeError(f"{text!r}; allowed: {allowed}")


def at_least(least: int, text: str) -> int:
    if not (text.isascii() and text.isdigit()) or int(text) < least:
        raise refusal(text, f"whole numbers from {least}")
    return int(text)


at_least_1, at_least_2 = partial(at_least, 1), partial(at_least, 2)


def names(*allowed: str) -> Callable[[str], tuple[str, ...]]:
    def several(text: str) -> tuple[str, ...]:
        found = tuple(name.strip() for name in text.split(",") if name.strip())
        if not found or (allowed and not {*found} <= {*allowed}):
            raise refusal(text, f"{', '.join(allowed) or 'names'}, separated by commas")
        return found

    return several


def numbers(text: str) -> tuple[int, ...]:
    return tuple(at_least_1(word.strip()) for word in text.split(","))


def shapes(text: str) -> tuple[tuple[int, ...], ...]:
    found = tuple(tuple(at_least_1(extent) for extent in shape.split("x")) for shape in names()(text))
    if not {len(shape) for shape in found} <= {2, 3, 4}:
        raise refusal(text, "sizes such as 1x4096 or 1x16x8x128, separated by commas")
    return found


def engine_arguments(text: str) -> dict[str, Any]:
    """A JSON object by the names of Python."""
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise refusal(text, 'a JSON object such as {"max_num_seqs": 4}')
    found = {name.lstrip("-").replace("-", "_"): value for name, value in found.items()}
    if taken := found.keys() & OF_THE_BENCH:
        raise ArgumentTypeError(f"the bench decides {', '.join(sorted(taken))}; allowed: other arguments")
    return found


def model_of(text: str) -> str:
    """A folder or file that is there, as an absolute path, since servers run elsewhere; or a name on the hub."""
    path = os.path.expanduser(text)
    if text.strip() and os.path.exists(path):
        return os.path.realpath(path)
    if text.startswith((".", "/", "~")) or (text.count("/") > 1 and "://" not in text) or not text.strip():
        raise refusal(text, "a folder that exists, or a name on the hub")
    return text


def parser(kind: str, description: str) -> ArgumentParser:
    """With the options of every bench."""
    made = ArgumentParser(prog=f"{COMMAND} {kind}", description=description)
    made.add_argument("--out", type=Path, help="the JSON (default: by date and bench, in bench_results)")
    made.set_defaults(kind=kind)
    return made


def check_out(made: ArgumentParser, chosen: Namespace, *of_name: str) -> None:
    """Where the result is to go; folders that are missing will be made. of_name: more for the name of the default."""
    name = "-".join((f"{datetime.now(UTC):%Y%m%d-%H%M}", chosen.kind, *of_name))
    file = chosen.out = chosen.out or Path("bench_results", f"{name}.json")
    there = next(path for path in (file, *file.parents) if os.path.exists(path))
    # A picture lies beside it, under another ending.
    named = file.suffix == ".json" and len(os.fsencode(file.name)) <= MOST_BYTES
    fits = named and not file.is_dir() and (there == file or there.is_dir())
    if not fits or not os.access(there, os.W_OK):
        made.error(f"--out: {file} cannot be written; allowed: {FITTING}")


def check_ready(parser: ArgumentParser, engine: str | None = None) -> None:
    """A variable of ours that says nothing would be recorded beside figures that it did not decide. engine: starts."""
    if faults := [*settings.wrong().values(), *settings.unknown()]:
        parser.error("; ".join(faults))
    if engine and environment.engine_version(engine) is None:
        extras = " or ".join(DISTRIBUTIONS[engine])
        parser.error(f"{TITLES[engine]} is not installed: pip install 'serving-ops[{extras}]'")
    if engine and not environment.plugin_installed(engine):
        parser.error(f"{TITLES[engine]} would not find the serving_ops plugin: install serving-ops (pip install -e .)")


def parse_without_engine(made: ArgumentParser, words: Sequence[str]) -> Namespace:
    """With `device`, of a bench that starts no engine."""
    import torch

    made.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    chosen = made.parse_args(words)
    check_ready(made)
    if chosen.device == "cuda" and not torch.cuda.is_available():
        made.error("--device cuda: torch finds no GPU on this machine")
    check_out(made, chosen, chosen.device)
    return chosen


def engine_parser(kind: str, description: str) -> ArgumentParser:
    """The options of the benches that serve a model. `complete` chooses a preset where the user does not."""
    made = parser(kind, description)
    add = made.add_argument
    add("--engine", choices=TITLES, default="vllm", help="default: %(default)s")
    model = made.add_mutually_exclusive_group()
    help = f"{smollm2.NAME} is a real model, for `serve` on vLLM the default; the others have dummy weights"
    model.add_argument("--preset", choices=(smollm2.NAME, *presets.PRESETS), help=help)
    model.add_argument("--model", type=model_of, help="a folder or a hub name instead of a preset")
    add("--quantization", choices=presets.QUANTIZATIONS, help="of the preset's linear layers (default: none)")
    mode = made.add_mutually_exclusive_group()
    mode.add_argument("--eager", action="store_true", default=None, help="default on CPU")
    mode.add_argument("--compiled", action="store_false", dest="eager", help="default on CUDA")
    example = 'such as {"tensor_parallel_size": 2}'
    add("--engine-args", type=engine_arguments, default={}, metavar="JSON", help=f"more for the engine, {example}")
    add("--start-timeout", type=at_least_1, default=600, help="seconds a start may take (default: %(default)s)")
    add("--keep-logs", action="store_true", help="keep the logs; after a failure they stay anyway")
    return made


def complete(
    made: ArgumentParser, chosen: Namespace, defaults: dict[str, dict[str, Any]], tokens: Callable[[Namespace], int]
) -> Namespace:
    """Checks the options and fills the defaults of the device in; `tokens` are those of the longest request."""
    check_ready(made, chosen.engine)
    chosen.device = environment.detect_device(chosen.engine)
    _choose_model(made, chosen)
    if chosen.engine == "sglang" and chosen.device == "cpu" and chosen.eager is False:
        made.error("--compiled: SGLang compiles nothing on CPU")
    for option, value in defaults[chosen.device].items():
        if getattr(chosen, option) is None:
            setattr(chosen, option, value)
    longest = tokens(chosen) + SPARE_TOKENS
    if chosen.positions and longest > chosen.positions:
        made.error(f"--preset {chosen.preset} has {chosen.positions} positions: {longest} tokens do not fit")
    label = Path(chosen.label.removeprefix("preset ")).name
    check_out(made, chosen, chosen.engine, chosen.device, label, "eager" if chosen.eager else "compiled")
    return chosen


def _choose_model(made: ArgumentParser, chosen: Namespace) -> None:
    """Sets what is chosen by the preset: `model`, a folder or a name, but None for dummy weights; `label` for readers;
    `positions`, None where unknown; `model_args`, what an engine has to be told."""
    quantized, preset = chosen.quantization, chosen.preset
    if chosen.model:
        if quantized:
            made.error(f"--quantization {quantized}: for presets alone")
        chosen.label = Path(chosen.model).name if os.path.isabs(chosen.model) else without_secrets(chosen.model)
        chosen.positions, chosen.model_args = None, {}
        return
    by_default = preset is None and chosen.kind == "serve" and chosen.engine == "vllm"
    if (preset == smollm2.NAME or by_default) and quantized in (None, *smollm2.QUANTIZED):
        try:
            chosen.model, chosen.preset = str(smollm2.checkpoint(quantized)), smollm2.NAME
            chosen.label = "-".join(filter(None, (smollm2.TITLE, quantized)))
            chosen.positions, chosen.model_args = smollm2.MAX_POSITIONS, presets.loading_args(quantized)
            return
        except smollm2.Unavailable as error:
            if preset:
                made.error(f"--preset {preset}: {error}")
            print(f"no {smollm2.NAME}, so the preset {DUMMY} with dummy weights is served: {error}", file=sys.stderr)
    chosen.preset = preset = preset or DUMMY
    on_sglang = chosen.engine == "sglang"
    if quantized and (preset not in presets.QUANTIZED or (on_sglang and chosen.device == "cpu")):
        made.error(f"--quantization {quantized}: allowed with {', '.join(presets.QUANTIZED)}, and on CPU with vLLM")
    if on_sglang and (preset, chosen.device) in NOT_ON_SGLANG:
        made.error(f"--preset {preset}: SGLang does not run it on {chosen.device}")
    chosen.label = "-".join(filter(None, (f"preset {preset}", quantized)))
    chosen.positions = presets.MAX_POSITIONS
    chosen.model_args = presets.preset_engine_args(preset, chosen.device, chosen.engine, quantized)


def model_and_tokenizer(chosen: Namespace, work: Path) -> tuple[str, str]:
    """Where they lie: a preset with dummy weights is written into `work`."""
    if chosen.model:
        return chosen.model, chosen.model
    folder = presets.write_preset(chosen.preset, work / chosen.preset, chosen.device, chosen.quantization)
    return str(folder), str(folder / presets.TOKENIZER)
