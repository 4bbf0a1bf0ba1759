"""The options of `python -m serving_ops.bench_e2e`, their defaults by device, and what they refuse."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from serving_ops import settings
from serving_ops.bench_e2e import arguments, environment, presets, quantization
from serving_ops.bench_e2e.arguments import (
    at_least_1,
    at_least_2,
    check_length,
    check_writable,
    file_name,
    port,
    server_words,
)
from serving_ops.bench_e2e.engines import ENGINES
from serving_ops.bench_e2e.result import OURS
from serving_ops.bench_e2e.rounds import SPARE_TOKENS
from serving_ops.bench_e2e.server import VARIANTS

COMMAND = "python -m serving_ops.bench_e2e"

# On CPU eager, where the engine runs our ops call by call and start-up is short: 5 rounds of two servers take
# about 6 minutes on 2 cores, most of it imports. On CUDA what one would deploy: compiled, with CUDA graphs.
DEFAULTS: dict[str, dict[str, Any]] = {
    "cpu": {"eager": True, "num_prompts": 12, "input_len": 512, "output_len": 32},
    "cuda": {"eager": False, "num_prompts": 64, "input_len": 512, "output_len": 128},
}
EVERYWHERE: dict[str, Any] = {"rounds": 5, "concurrency": 1, "num_warmups": 2}
QUICK: dict[str, Any] = {"rounds": 1, "num_prompts": 4, "input_len": 64, "output_len": 8, "num_warmups": 1}


def parse(words: list[str]) -> argparse.Namespace:
    """The options, complete: `device` is "cpu" or "cuda", `variants` a tuple, nothing is left to a default.

    Exits with status 2 and a sentence for whatever cannot work, before any server is started.
    """
    parser = _parser()
    options = parser.parse_args(words)
    check_variables(parser)
    options.variants = _variants(parser, options.variants)
    check_installed(parser, options.engine, options.variants)
    options.device = check_device(parser, options.engine, options.device)
    check_preset(parser, options)
    check_sglang(parser, options)
    quick = QUICK if options.quick else {}
    for option, value in {**DEFAULTS[options.device], **EVERYWHERE, **quick}.items():
        if getattr(options, option) is None:
            setattr(options, option, value)
    check_length(parser, options, options.input_len + options.output_len + SPARE_TOKENS)
    check_writable(parser, *(options.out / f"{options.name or 'result'}{ending}" for ending in (".json", ".png")))
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=COMMAND,
        description="Serve a model with and without serving_ops and compare TTFT and TPOT.",
        epilog="`... table FILE...` renders results as Markdown; `--ops` times the ops, `--training` with gradients.",
    )
    add = parser.add_argument
    add_model_and_mode(parser)
    add("--variants", default=",".join(VARIANTS), help="comma-separated (default: %(default)s)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--rounds", type=at_least_1, help="servers of each variant (default: 5)")
    add("--num-prompts", type=at_least_1, help="measured requests a round (default: 12 on CPU, 64 on CUDA)")
    add("--input-len", type=at_least_1, help="tokens (default: 512)")
    add("--output-len", type=at_least_2, help="tokens (default: 32 on CPU, 128 on CUDA)")
    add("--concurrency", type=at_least_1, help="requests in flight (default: 1)")
    add("--num-warmups", type=at_least_1, help="unmeasured requests (default: 2)")
    add("--quick", action="store_true", help="one tiny round: does it work at all?")
    add("--port", type=port, metavar="auto|N", help="of the server (default: a free one)")
    add("--serve-args", type=server_words, action="extend", default=[], metavar="ARGS", help="more for the server")
    add("--start-timeout", type=at_least_1, default=600, help="seconds a server may take (default: 600)")
    add("--out", type=Path, default=Path("bench_results"), help="for JSON and PNG (default: %(default)s)")
    add("--name", type=file_name, help="of both files (default: date, engine, device, model and mode)")
    add("--keep-logs", action="store_true", help="keep the servers' logs; after a failure they stay anyway")
    return parser


def add_model_and_mode(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--engine", choices=ENGINES, default="vllm", help="default: %(default)s")
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--preset", choices=presets.PRESETS, default="dense", help="made here, dummy weights")
    model.add_argument("--model", type=arguments.model, help="a folder or a hub name instead of a preset")
    quantizations = quantization.QUANTIZATIONS
    parser.add_argument("--quantization", choices=quantizations, help="of the preset's linear layers (default: none)")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--eager", action="store_true", default=None, help="default on CPU")
    mode.add_argument("--compiled", action="store_false", dest="eager", help="default on CUDA")


def _variants(parser: argparse.ArgumentParser, text: str) -> tuple[str, ...]:
    variants = tuple(text.split(","))
    if not set(variants) <= set(VARIANTS) or len(set(variants)) != len(variants):
        parser.error(f"--variants is {text!r}; allowed: one or both of {', '.join(VARIANTS)}")
    return variants


def check_installed(parser: argparse.ArgumentParser, engine: str, variants: tuple[str, ...]) -> None:
    name = ENGINES[engine]
    if environment.engine_version(engine) is None:
        parser.error(f"{name.title} is not installed: {name.install}")
    if OURS in variants and not environment.plugin_installed(engine):
        parser.error(f"{name.title} would not find the serving_ops plugin: install serving-ops (pip install -e .)")


def check_device(parser: argparse.ArgumentParser, engine: str, wanted: str) -> str:
    found = environment.detect_device(engine)
    if wanted not in ("auto", found):
        who = f"{ENGINES[engine].title} {environment.engine_version(engine)}"
        parser.error(f"--device {wanted}: {who} on this machine runs on {found}")
    return found


def check_preset(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Without serving_ops SGLang has no gated norm on CPU: there is nothing to compare with."""
    if options.quantization is not None:
        _check_quantization(parser, options)
    if options.engine != "sglang" or options.model:
        return
    if options.preset == "mamba2":
        parser.error("--preset mamba2: for vLLM alone")
    if (options.preset, options.device) == ("hybrid", "cpu"):
        parser.error("--preset hybrid: SGLang alone cannot run gated norms on CPU, so nothing can be compared")


def _check_quantization(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    if options.model or options.preset not in presets.QUANTIZED:
        parser.error(f"--quantization {options.quantization}: for --preset {' or '.join(presets.QUANTIZED)} alone")
    if options.engine == "sglang" and options.device == "cpu":
        parser.error(f"--quantization {options.quantization}: SGLang quantizes nothing on CPU")


def check_variables(parser: argparse.ArgumentParser) -> None:
    """A variable of ours that says nothing would be recorded beside figures that it did not decide."""
    if faults := [*settings.wrong().values(), *settings.unknown()]:
        parser.error("; ".join(faults))


def check_sglang(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """What SGLang has no second mode for."""
    if options.engine == "sglang" and options.device == "cpu" and options.eager is False:
        parser.error("--compiled: SGLang compiles nothing on CPU")
