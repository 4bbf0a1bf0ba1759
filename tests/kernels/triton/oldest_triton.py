"""The oldest supported Triton beside the installed one, in a folder that comes first on PYTHONPATH.

Run by path, by `make setup`: unpacks its wheel into a folder of the virtual environment, unless that Triton is
installed.
"""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

TORCH, VERSION = "2.11", "3.6.0"
"""The oldest torch that pyproject.toml allows, and the Triton that its CUDA wheels require."""

FOLDER = Path(sys.prefix) / f"triton-{VERSION}"


def _is_installed() -> bool:
    try:
        return importlib.metadata.version("triton") == VERSION
    except importlib.metadata.PackageNotFoundError:
        return False


def search_path() -> list[str]:
    """What comes first on PYTHONPATH of a process that imports it."""
    return [] if _is_installed() else [str(FOLDER)]


def needed() -> pytest.MarkDecorator:
    """Skips a test, with the reason, where that Triton was not fetched."""
    reason = f"Triton {VERSION} was not fetched: tests/kernels/triton/{Path(__file__).name} fetches it"
    return pytest.mark.skipif(not _is_installed() and not FOLDER.is_dir(), reason=reason)


def fetch() -> None:
    """Put it into its folder, once. Raises OSError where pip finds no wheel for this machine."""
    if _is_installed() or FOLDER.is_dir():
        return
    with tempfile.TemporaryDirectory(dir=sys.prefix) as scratch:
        target = Path(scratch) / "packages"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += ["--target", str(target), f"triton=={VERSION}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise OSError(done.stderr.strip().rpartition("\n")[2])
        shutil.move(target, FOLDER)


def main() -> None:
    try:
        fetch()
    except OSError as error:
        print(f"Triton {VERSION} was not fetched, its tests will be skipped: {error}")


if __name__ == "__main__":
    main()
