"""Each SGLang that is tested, in an environment of its own: a folder that comes first on PYTHONPATH.

Run by `make setup`: puts each version's wheel, and what it needs beyond or unlike this virtual environment's
packages, into a folder of the virtual environment, from requirements-VERSION.txt and without anything's dependencies,
which are for CUDA. torch is the virtual environment's, and so is serving_ops.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import fetched
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
    return fetched.folder("sglang", version)


def environment(version: str) -> dict[str, str]:
    """What makes a process import that version, and run it on CPU."""
    return {
        "PYTHONPATH": os.pathsep.join([str(folder(version)), str(STAND_IN)]),
        "PYTHONSAFEPATH": "1",
        "SGLANG_USE_CPU_ENGINE": "1",
        "HF_HUB_OFFLINE": "1",
    }


def on_ranks(ranks: int) -> dict[str, str]:
    """What lets an engine with so many ranks start on a CPU whose cores are all of one NUMA node: a core for each."""
    return {"SGLANG_CPU_OMP_THREADS_BIND": "|".join(map(str, range(ranks)))}


def needs(version: str) -> pytest.MarkDecorator:
    """Skips a test, with the reason, where that version was not fetched."""
    return fetched.needs("SGLang", version, folder(version).is_dir())


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
    with fetched.filling(folder(version)) as target:
        fetched.pip("install", "--target", str(target), "--requirement", str(wanted))
        shutil.copy(wanted, target)


if __name__ == "__main__":
    fetched.fetch_each("SGLang", VERSIONS, fetch)
