"""Each SGLang that is tested, in an environment of its own: a folder that comes first on PYTHONPATH.

Run by path, by `make setup`: puts each version's wheel, and what it needs beyond or unlike this virtual environment's
packages, into a folder of the virtual environment, from requirements-VERSION.txt and without anything's dependencies,
which are for CUDA. torch is the virtual environment's, and so is serving_ops.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

VERSIONS = ("0.5.11", "0.5.17", "0.5.23")
"""The oldest that pyproject.toml allows, the last whose norms choose a method when they are built, and the newest."""

SERVED = VERSIONS[1:]
"""Those that tests serve models with."""

HERE = Path(__file__).parent
STAND_IN = HERE / "stand_in"
RUN_SECONDS = 300


def folder(version: str) -> Path:
    """Where a version lies, if it was fetched."""
    return Path(sys.prefix) / f"sglang-{version}"


def environment(version: str) -> dict[str, str]:
    """What makes a process import that version, and run it on CPU."""
    return {
        "PYTHONPATH": os.pathsep.join([str(folder(version)), str(STAND_IN)]),
        "PYTHONSAFEPATH": "1",
        "SGLANG_USE_CPU_ENGINE": "1",
        "HF_HUB_OFFLINE": "1",
    }


def needs(version: str) -> pytest.MarkDecorator:
    """Skips a test, with the reason, where that version was not fetched."""
    reason = f"SGLang {version} was not fetched: tests/integrations/sglang/{Path(__file__).name} fetches it"
    return pytest.mark.skipif(not folder(version).is_dir(), reason=reason)


def run(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run Python in such a process: both streams as one text, however it ends."""
    return subprocess.run(
        [sys.executable, *command],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=RUN_SECONDS,
        check=False,
    )


def fetch(version: str) -> None:
    """Put a version into its folder, once for each list of packages.

    Raises OSError where pip finds one of them nowhere.
    """
    wanted = HERE / f"requirements-{version}.txt"
    kept = folder(version) / wanted.name
    if kept.is_file() and kept.read_text() == wanted.read_text():
        return
    with tempfile.TemporaryDirectory(dir=sys.prefix) as scratch:
        target = Path(scratch) / "packages"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += ["--target", str(target), "--requirement", str(wanted)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise OSError(done.stderr.strip().rpartition("\n")[2])
        shutil.copy(wanted, target)
        shutil.rmtree(folder(version), ignore_errors=True)
        shutil.move(target, folder(version))


def main() -> None:
    for version in VERSIONS:
        try:
            fetch(version)
        except OSError as error:
            print(f"SGLang {version} was not fetched, its tests will be skipped: {error}")


if __name__ == "__main__":
    main()
