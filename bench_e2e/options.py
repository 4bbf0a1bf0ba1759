"""The options of the benches, and what they refuse: it ends with a sentence and status 2 before anything starts."""

from __future__ import annotations

import argparse
import errno
import json
import math
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from serving_ops import settings
from serving_ops.bench_e2e import environment, presets, redact, result_file, smollm2
from serving_ops.bench_e2e.engine_arguments import SPARE_TOKENS
from serving_ops.bench_e2e.environment import ENGINES

COMMAND = "python -m serving_ops.bench_e2e"
DUMMY = "dense"  # the preset for shapes
MOST_BYTES = 200  # of a file's name, which gets an ending
# A server that the bench cannot reach, or that asks its client for a key, cannot be measured.
OF_THE_BENCH = {"api_key", "host", "port", "uds", "root_path", "served_model_name", "ssl_keyfile", "ssl_certfile"}
SEVERAL = ("pipeline_parallel_size", "pp_size", "data_parallel_size", "dp_size")


def refusal(text: str, allowed: str) -> argparse.ArgumentTypeError:
    return argparse.ArgumentTypeError(f"{text!r}; allowed: {allowed}")


def at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not (text.isascii() and text.isdigit()) or int(text) < least:
            raise refusal(text, f"whole numbers from {least}")
        return int(text)

    return number


at_least_1, at_least_2 = at_least(1), at_least(2)


def above_0(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise refusal(text, "numbers above 0")
    return number


def names(text: str) -> tuple[str, ...]:
    found = tuple(name.strip() for name in text.split(",") if name.strip())
    if not found:
        raise refusal(text, "names, separated by commas")
    return found


def numbers(text: str) -> tuple[int, ...]:
    return tuple(at_least_1(word.strip()) for word in text.split(","))


def shapes(text: str) -> tuple[tuple[int, ...], ...]:
    """Of two or three extents each."""
    found = tuple(tuple(at_least_1(extent) for extent in shape.split("x")) for shape in names(text))
    if not {len(shape) for shape in found} <= {2, 3}:
        raise refusal(text, "sizes such as 1x4096 or 8x16x128, separated by commas")
    return found


def file_name(text: str) -> str:
    if not text.strip() or "/" in text or text in (".", "..") or len(os.fsencode(text)) > MOST_BYTES:
        raise refusal(text, f"a file's name without folders, of at most {MOST_BYTES} bytes")
    return text


def engine_arguments(text: str) -> dict[str, Any]:
    """A JSON object by the names of Python. The device time of a pipeline's step is not measured."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise refusal(text, 'a JSON object such as {"max_num_seqs": 4}')
    found = {name.lstrip("-").replace("-", "_"): value for name, value in found.items()}
    several = [name for name in SEVERAL if found.get(name, 1) != 1]
    if found.keys() & {"model", "model_path"}:
        raise argparse.ArgumentTypeError("the model is the option --model")
    if taken := found.keys() & OF_THE_BENCH:
        raise argparse.ArgumentTypeError(f"{', '.join(taken)}: the bench decides it, since its own client is served")
    if several:
        raise argparse.ArgumentTypeError(
            f"{', '.join(several)}: of the parallel kinds, only tensor parallelism is measured"
        )
    return found


def model_of(text: str) -> str:
    """A folder or file that is there, as an absolute path, since servers run elsewhere; or a name on the hub."""
    try:
        path = Path(text).expanduser()
        if text.strip() and path.exists():
            return str(path.resolve())
    except (OSError, RuntimeError) as error:  # too long a name; no such user's home
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None
    if text.startswith((".", "/", "~")) or (text.count("/") > 1 and "://" not in text) or not text.strip():
        raise argparse.ArgumentTypeError(f"{text!r}: there is no such folder")
    return text


def check_writable(parser: argparse.ArgumentParser, file: Path) -> None:
    """Where a result is to go; folders that are missing will be made."""
    made = next(path for path in (file, *file.parents) if path.exists())
    wrong = errno.EISDIR if file.is_dir() else errno.ENOTDIR if made != file and not made.is_dir() else None
    if wrong := wrong or (None if os.access(made, os.W_OK) else errno.EACCES):
        parser.error(f"--out: {file} cannot be written: {os.strerror(wrong)}")


def check_gpu(parser: argparse.ArgumentParser, device: str) -> None:
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU on this machine")


def check_variables(parser: argparse.ArgumentParser) -> None:
    """A variable of ours that says nothing would be recorded beside figures that it did not decide."""
    if faults := [*settings.wrong().values(), *settings.unknown()]:
        parser.error("; ".join(faults))


def check_installed(parser: argparse.ArgumentParser, engine: str) -> None:
    name = ENGINES[engine]
    if environment.engine_version(engine) is None:
        parser.error(f"{name.title} is not installed: {name.install}")
    if not environment.plugin_installed(engine):
        parser.error(f"{name.title} would not find the serving_ops plugin: install serving-ops (pip install -e .)")


def parser(name: str, description: str) -> argparse.ArgumentParser:
    """The options of every bench that serves a model. `complete` chooses a preset where the user does not."""
    made = argparse.ArgumentParser(prog=f"{COMMAND} {name}", description=description)
    add = made.add_argument
    add("--engine", choices=ENGINES, default="vllm", help="default: %(default)s")
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
    preset = "-".join(filter(None, (chosen.preset, chosen.quantization)))
    label = redact.text(Path(chosen.model).name) if chosen.model else preset
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
    if chosen.model or chosen.preset == smollm2.NAME:
        found = chosen.model or str(smollm2.checkpoint(chosen.quantization))
        return found, found
    folder = presets.write_preset(chosen.preset, work / chosen.preset, chosen.device, chosen.quantization)
    return str(folder), str(presets.tokenizer_of(folder))


def model_label(chosen: argparse.Namespace) -> str:
    """The model to a reader: a folder by its last name alone."""
    if not chosen.model:
        of_preset = smollm2.TITLE if chosen.preset == smollm2.NAME else f"preset {chosen.preset}"
        return "-".join(filter(None, (of_preset, chosen.quantization)))
    return Path(chosen.model).name if os.path.isabs(chosen.model) else str(chosen.model)


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
    quantizing = (*([smollm2.NAME] if quantized in smollm2.QUANTIZED else []), *presets.QUANTIZED)
    if quantized and (chosen.model or chosen.preset not in quantizing):
        made.error(f"--quantization {quantized}: for --preset {' or '.join(quantizing)} alone")
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
