"""Other versions of Triton beside the installed one, each in a folder that comes first on PYTHONPATH.

Run by path, by `make setup`: unpacks their wheels into folders of the virtual environment.
"""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

TORCH, OLDEST = "2.11", "3.6.0"
"""The oldest torch that pyproject.toml allows, and the Triton that its CUDA wheels require."""

VERSIONS = (OLDEST, "3.8.0")
"""Which kernels are compiled with, beside the installed one."""


def folder(version: str) -> Path:
    """Where a version lies, if it was fetched."""
    return Path(sys.prefix) / f"triton-{version}"


def _is_installed(version: str) -> bool:
    try:
        return importlib.metadata.version("triton") == version
    except importlib.metadata.PackageNotFoundError:
        return False


def search_path(version: str) -> list[str]:
    """What comes first on PYTHONPATH of a process that imports that version."""
    return [] if _is_installed(version) else [str(folder(version))]


def needs(version: str) -> pytest.MarkDecorator:
    """Skips a test, with the reason, where that Triton was not fetched."""
    reason = f"Triton {version} was not fetched: tests/kernels/triton/{Path(__file__).name} fetches it"
    return pytest.mark.skipif(not _is_installed(version) and not folder(version).is_dir(), reason=reason)


def fetch(version: str) -> None:
    """Put a version into its folder, once. Raises OSError where pip finds no wheel for this machine."""
    if _is_installed(version) or folder(version).is_dir():
        return
    with tempfile.TemporaryDirectory(dir=sys.prefix) as scratch:
        target = Path(scratch) / "packages"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += ["--target", str(target), f"triton=={version}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise OSError(done.stderr.strip().rpartition("\n")[2])
        shutil.move(target, folder(version))


def main() -> None:
    for version in VERSIONS:
        try:
            fetch(version)
        except OSError as error:
            print(f"Triton {version} was not fetched, its tests will be skipped: {error}")


if __name__ == "__main__":
    main()
