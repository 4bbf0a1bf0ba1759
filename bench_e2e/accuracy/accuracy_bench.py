"""`python -m serving_ops.bench_e2e accuracy`: is a model with our norms as near to its fp32 form as with vLLM's?"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from serving_ops.bench_e2e import environment, options, result_file, smollm2
from serving_ops.bench_e2e.accuracy import accuracy_table
from serving_ops.bench_e2e.accuracy.accuracy_rows import Served, measure
from serving_ops.bench_e2e.arguments import check_writable, engine_arguments, file_name, names
from serving_ops.bench_e2e.process import ChildFailed
from serving_ops.bench_e2e.result_file import save

KIND = "accuracy"
TEXT = Path(__file__).with_name("text.txt")
MODES = ("eager", "compiled")
NOT_QUANTIZED = "none"
QUANTIZATIONS = (NOT_QUANTIZED, *smollm2.QUANTIZED)


def main(words: Sequence[str]) -> int:
    """Exit status 1, with a sentence, where the model cannot be had or vLLM fails."""
    chosen = _parse(words)
    device = environment.detect_device()
    try:
        model = smollm2.checkpoint()
        served = [
            _served(quantization, mode, chosen.engine_args)
            for quantization in chosen.quantizations
            for mode in chosen.modes
        ]
        with tempfile.TemporaryDirectory(prefix="serving-ops-accuracy-") as work:
            found = measure(model, TEXT.read_text(), served, device, Path(work), say=_say)
    except (smollm2.Unavailable, ChildFailed) as error:
        print(error, file=sys.stderr)
        return 1
    run = result_file.of_run(KIND, environment.command_line(f"{options.COMMAND} {KIND}", words), device)
    result = {**run, "name": chosen.name, "engine": "vllm", "model": smollm2.TITLE, **found}
    print(f"wrote {save(result, chosen.out / f'{chosen.name}.json')}\n\n{accuracy_table.markdown(result)}")
    return 0


def _say(what: str) -> None:
    print(what, flush=True)


def _served(quantization: str, mode: str, more: dict[str, Any]) -> Served:
    name = None if quantization == NOT_QUANTIZED else quantization
    return Served(name, mode == "eager", smollm2.checkpoint(name), smollm2.engine_args(name) | more)


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=f"{options.COMMAND} {KIND}",
        description="Perplexity and divergence from fp32 of SmolLM2, with vLLM's norms and with ours.",
    )
    add = parser.add_argument
    add("--quantizations", type=names, default=(NOT_QUANTIZED,), help=f"of {', '.join(QUANTIZATIONS)} (default: none)")
    add("--modes", type=names, default=MODES, help=f"of {', '.join(MODES)} (default: both)")
    add("--engine-args", type=engine_arguments, default={}, metavar="JSON", help="more for vLLM")
    add("--out", type=Path, default=Path("bench_results"), help="for the JSON (default: %(default)s)")
    add("--name", type=file_name, default=f"{datetime.now(UTC):%Y%m%d-%H%M}-accuracy", help="of the file")
    chosen = parser.parse_args(words)
    for option, allowed in (("quantizations", QUANTIZATIONS), ("modes", MODES)):
        if wrong := [name for name in getattr(chosen, option) if name not in allowed]:
            parser.error(f"--{option} has {', '.join(wrong)}; allowed: {', '.join(allowed)}")
    options.check_variables(parser)
    options.check_installed(parser, "vllm")
    check_writable(parser, chosen.out / f"{chosen.name}.json")
    return chosen
