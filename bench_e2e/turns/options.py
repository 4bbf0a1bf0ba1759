"""The options of `python -m serving_ops.bench_e2e --turns`, and their defaults by device."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from serving_ops.bench_e2e.arguments import (
    above_0,
    at_least_1,
    check_length,
    check_writable,
    engine_arguments,
    file_name,
    numbers,
)
from serving_ops.bench_e2e.options import (
    add_model_and_mode,
    check_device,
    check_installed,
    check_preset,
    check_sglang,
    check_variables,
)
from serving_ops.bench_e2e.result import OURS
from serving_ops.bench_e2e.turns.load import Load

COMMAND = "python -m serving_ops.bench_e2e --turns"

DEFAULTS: dict[str, dict[str, Any]] = {
    "cpu": {"eager": True, "batch_sizes": (1,), "prompt_lens": (512,), "decode_steps": 32, "engines": 3},
    "cuda": {"eager": False, "batch_sizes": (1, 16), "prompt_lens": (512, 8192), "decode_steps": 96, "engines": 4},
}


def parse(words: list[str]) -> argparse.Namespace:
    """The options, complete: nothing is left to a default. Exits with status 2 and a sentence for what cannot work."""
    parser = _parser()
    options = parser.parse_args(words)
    check_variables(parser)
    check_installed(parser, options.engine, (OURS,))
    options.device = check_device(parser, options.engine, "auto")
    check_preset(parser, options)
    check_sglang(parser, options)
    for option, value in DEFAULTS[options.device].items():
        if getattr(options, option) is None:
            setattr(options, option, value)
    load = Load(options.batch_sizes, options.prompt_lens, options.decode_steps)
    check_length(parser, options, load.context)
    check_writable(parser, options.out / f"{options.name or 'result'}.json")
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=COMMAND,
        description="Compare engines with and without serving_ops, all alive at once, in turns: TPOT, TTFT, and the "
        "device time of a decode step.",
    )
    add = parser.add_argument
    add_model_and_mode(parser)
    add("--engines", type=at_least_1, help="of each variant (default: 3 on CPU, 4 on CUDA)")
    add("--rounds", type=at_least_1, default=5, help="turns of each engine (default: %(default)s)")
    add("--batch-sizes", type=numbers, help="requests decoding together (default: 1; on CUDA 1,16)")
    add("--prompt-lens", type=numbers, help="tokens (default: 512; on CUDA 512,8192)")
    add("--decode-steps", type=at_least_1, help="over which TPOT is taken (default: 32 on CPU, 96 on CUDA)")
    add("--kv-cache-gib", type=above_0, default=4.0, help="of each vLLM on CUDA (default: %(default)s)")
    add(
        "--engine-args",
        type=engine_arguments,
        default={},
        metavar="JSON",
        help="more for `vllm.LLM` or `sglang.Engine`",
    )
    add("--start-timeout", type=at_least_1, default=600, help="seconds the engines may take (default: %(default)s)")
    add("--out", type=Path, default=Path("bench_results"), help="for the JSON (default: %(default)s)")
    add("--name", type=file_name, help="of the JSON (default: date, engine, device, model and mode)")
    add("--keep-logs", action="store_true", help="keep the engines' logs; after a failure they stay anyway")
    return parser
