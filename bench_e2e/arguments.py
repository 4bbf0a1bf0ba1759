"""What the options of every bench may hold; anything else ends with a sentence and status 2 before anything starts.

The functions that take a text are types for argparse; those that take a parser check options together.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import math
import os
import shlex
import socket
from pathlib import Path
from typing import Any

from serving_ops.bench_e2e import presets
from serving_ops.bench_e2e.server import HOST

MOST_BYTES = 200  # of a file's name, which gets an ending
# A server that the bench cannot reach, or that asks its client for a key, cannot be measured.
OF_THE_BENCH = frozenset(
    ("--api-key", "--host", "--port", "--uds", "--root-path", "--served-model-name", "--ssl-keyfile", "--ssl-certfile")
)


def refusal(text: str, allowed: str) -> argparse.ArgumentTypeError:
    return argparse.ArgumentTypeError(f"{text!r}; allowed: {allowed}")


def at_least_1(text: str) -> int:
    return at_least(text, 1)


def at_least_2(text: str) -> int:
    return at_least(text, 2)


def at_least(text: str, least: int) -> int:
    if not (text.isascii() and text.isdigit()) or int(text) < least:
        raise refusal(text, f"whole numbers from {least}")
    return int(text)


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


def port(text: str) -> int | None:
    """None for `auto`. One that another program listens on is refused."""
    if text == "auto":
        return None
    number = at_least_1(text)
    if number > 65535:
        raise refusal(text, "auto, or 1 to 65535")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a server that has just ended still holds it
        try:
            probe.bind((HOST, number))
        except OSError as error:
            raise argparse.ArgumentTypeError(f"{text} cannot be used: {error.strerror}") from None
    return number


def file_name(text: str) -> str:
    if not text.strip() or "/" in text or text in (".", "..") or len(os.fsencode(text)) > MOST_BYTES:
        raise refusal(text, f"a file's name without folders, of at most {MOST_BYTES} bytes")
    return text


def server_words(text: str) -> list[str]:
    """More words for a server's command line, as a shell would split them."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None
    for word in words:
        option = word.partition("=")[0].replace("_", "-")
        if option in OF_THE_BENCH:
            raise argparse.ArgumentTypeError(f"{option}: the bench decides it, since its own client is to be served")
    return words


def engine_arguments(text: str) -> dict[str, Any]:
    """A JSON object. The model is an option, and the device time of a pipeline's step is not measured."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise refusal(text, 'a JSON object such as {"max_num_seqs": 4}')
    if found.keys() & {"model", "model_path"}:
        raise argparse.ArgumentTypeError("the model is the option --model")
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


def model_label(chosen: argparse.Namespace) -> str:
    """The model to a reader: a folder by its last name alone."""
    if not chosen.model:
        return f"preset {preset_label(chosen)}"
    return Path(chosen.model).name if os.path.isabs(chosen.model) else str(chosen.model)


def preset_label(chosen: argparse.Namespace) -> str:
    """The preset with its quantization, as in the names of files."""
    return "-".join(filter(None, (chosen.preset, chosen.quantization)))


def check_length(parser: argparse.ArgumentParser, options: argparse.Namespace, tokens: int) -> None:
    if not options.model and tokens > presets.MAX_POSITIONS:
        parser.error(f"--preset {options.preset} has {presets.MAX_POSITIONS} positions: {tokens} tokens do not fit")


def check_writable(parser: argparse.ArgumentParser, *files: Path) -> None:
    """Where results are to go. What has to be created to find out is removed again."""
    for file in files:
        try:
            _try_to_write(file)
        except OSError as error:
            parser.error(f"--out: {file} cannot be written: {error.strerror}")


def _try_to_write(file: Path) -> None:
    missing = [folder for folder in file.parents if not folder.exists()]
    try:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from None
        existed = file.exists()
        file.open("ab").close()
        if not existed:
            file.unlink()
    finally:
        for folder in missing:
            with contextlib.suppress(OSError):
                folder.rmdir()
