"""Packages that tests import beside the virtual environment's. `make setup` puts each version into a folder of it.

With such a folder first on PYTHONPATH, a process imports that version.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest


def folder(name: str, version: str) -> Path:
    """Where a version lies, if it was fetched."""
    return Path(sys.prefix) / f"{name}-{version}"


def needs(name: str, version: str, there: bool) -> pytest.MarkDecorator:
    """Skips a test, with the reason, where a version is not there."""
    return pytest.mark.skipif(not there, reason=f"{name} {version} was not fetched: `make setup` fetches it")


def pip(command: str, *words: str) -> None:
    """Have pip install or download wheels, without what they depend on. Raises OSError with pip's last line."""
    given = [sys.executable, "-m", "pip", command, "--quiet", "--no-deps", "--only-binary=:all:", *words]
    done = subprocess.run(given, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(done.stderr.strip().rpartition("\n")[2])


@contextlib.contextmanager
def filling(folder: Path) -> Iterator[Path]:
    """A folder to fill, which takes this one's place where nothing was raised."""
    with tempfile.TemporaryDirectory(dir=sys.prefix) as scratch:
        yield Path(scratch) / "filled"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.move(Path(scratch) / "filled", folder)


def fetch_each(name: str, versions: Iterable[str], fetch: Callable[[str], None]) -> None:
    """Fetch each version, or say why not."""
    for version in versions:
        try:
            fetch(version)
        except (ImportError, OSError, zipfile.BadZipFile) as error:
            print(f"{name} {version} was not fetched, its tests will be skipped: {error}")
