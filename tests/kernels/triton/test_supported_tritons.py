"""Every kernel compiles, with the oldest supported Triton and the installed one, for each generation of GPU.

Those of AMD too, where nothing runs them yet: ROCm runs the reference."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import oldest_triton
import pytest
import triton

HERE = Path(__file__).parent
PYPROJECT = HERE.parents[2] / "pyproject.toml"
OTHER_GPUS = ("80", "89", "100", "120")
AMD_GPUS = ("gfx942", "gfx950")
OLDEST, INSTALLED = oldest_triton.VERSION, triton.__version__


@pytest.mark.parametrize(
    ("version", "targets"),
    [
        pytest.param(OLDEST, ("90",), marks=oldest_triton.needed()),
        pytest.param(OLDEST, OTHER_GPUS, marks=[oldest_triton.needed(), pytest.mark.slow]),
        pytest.param(OLDEST, AMD_GPUS, marks=[oldest_triton.needed(), pytest.mark.slow]),
        pytest.param(INSTALLED, ("90", *OTHER_GPUS, *AMD_GPUS), marks=pytest.mark.slow),
    ],
    ids=["oldest", "oldest for other GPUs", "oldest for AMD", "installed"],
)
def test_every_kernel_compiles(version: str, targets: tuple[str, ...], tmp_path: Path) -> None:
    first = oldest_triton.search_path() if version == OLDEST else []
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": os.pathsep.join(first), "TRITON_CACHE_DIR": str(tmp_path)}
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
    assert f"torch>={oldest_triton.TORCH}" in dependencies
