"""Every kernel compiles, with each supported Triton, for each generation of GPU.

Those of AMD too, where nothing runs them yet: ROCm runs the reference."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import other_tritons
import pytest
import triton

HERE = Path(__file__).parent
PYPROJECT = HERE.parents[2] / "pyproject.toml"
HOPPER = ("90",)
OTHER_GPUS = ("80", "89", "100", "120")
AMD_GPUS = ("gfx942", "gfx950")


def marks(version: str, targets: tuple[str, ...]) -> list[pytest.MarkDecorator]:
    """`make test` compiles with the oldest Triton for Hopper: it refuses what newer ones take."""
    quick = version == other_tritons.OLDEST and targets == HOPPER
    return [other_tritons.needs(version), *([] if quick else [pytest.mark.slow])]


CASES = [
    pytest.param(version, targets, marks=marks(version, targets), id=f"Triton {version} for {' '.join(targets)}")
    for version in dict.fromkeys((*other_tritons.VERSIONS, triton.__version__))
    for targets in (HOPPER, OTHER_GPUS, AMD_GPUS)
]


@pytest.mark.parametrize(("version", "targets"), CASES)
def test_every_kernel_compiles(version: str, targets: tuple[str, ...], tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {
        "PYTHONPATH": os.pathsep.join(other_tritons.search_path(version)),
        "TRITON_CACHE_DIR": str(tmp_path),
    }
    command = [sys.executable, "-W", "ignore", str(HERE / "compile_kernels.py"), *targets]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert found["triton"] == version
    assert tuple(found["targets"]) == targets
    for target, code in found["targets"].items():
        assert code["failed"] == {}, target
        assert code["compiled"] == found["kernels"], target


def test_the_oldest_is_that_of_the_oldest_torch_that_pyproject_allows() -> None:
    dependencies = tomllib.loads(PYPROJECT.read_text())["project"]["dependencies"]
    assert f"torch>={other_tritons.TORCH}" in dependencies
