"""What the options of every bench may hold; anything else ends with a sentence and status 2 before anything starts.

The functions that take a text are types for argparse.
"""

from __future__ import annotations

import argparse
import errno
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

MOST_BYTES = 200  # of a file's name, which gets an ending
# A server that the bench cannot reach, or that asks its client for a key, cannot be measured.
OF_THE_BENCH = frozenset(
    ("api_key", "host", "port", "uds", "root_path", "served_model_name", "ssl_keyfile", "ssl_certfile")
)


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
    if found.keys() & {"model", "model_path"}:
        raise argparse.ArgumentTypeError("the model is the option --model")
    if taken := found.keys() & OF_THE_BENCH:
        raise argparse.ArgumentTypeError(f"{', '.join(taken)}: the bench decides it, since its own client is served")
    several = [name for name in ("pipeline_parallel_size", "pp_size", "data_parallel_size", "dp_size") if name in found]
    if any(found[name] != 1 for name in several):
        raise argparse.ArgumentTypeError(
            f"{', '.join(several)}: of the parallel kinds, only tensor parallelism is measured"
        )
    return found


def model(text: str) -> str:
    """A folder or file that is there, as an absolute path, since servers run elsewhere; or a name on the hub."""
    try:
        path = Path(text).expanduser()
        if text.strip() and path.exists():
            return str(path.resolve())
    except (OSError, RuntimeError) as error:  # too long a name; no such user's home
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None
    local = text.startswith((".", "/", "~")) or (text.count("/") > 1 and "://" not in text)
    if local or not text.strip():
        raise argparse.ArgumentTypeError(f"{text!r}: there is no such folder")
    return text


def check_writable(parser: argparse.ArgumentParser, file: Path) -> None:
    """Where a result is to go; folders that are missing will be made."""
    made = next(path for path in (file, *file.parents) if path.exists())
    problem = ""
    if made == file:
        problem = os.strerror(errno.EISDIR) if file.is_dir() else ""
    elif not made.is_dir():
        problem = os.strerror(errno.ENOTDIR)
    if not problem and not os.access(made, os.W_OK):
        problem = os.strerror(errno.EACCES)
    if problem:
        parser.error(f"--out: {file} cannot be written: {problem}")


def check_gpu(parser: argparse.ArgumentParser, device: str) -> None:
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU on this machine")
