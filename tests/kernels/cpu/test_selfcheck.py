"""The kernels' own check against double precision, without torch: each instruction set here, NEON under qemu."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[3] / "kernels"
CROSS_COMPILER = "aarch64-linux-gnu-g++"
EMULATOR = "qemu-aarch64"


def require(*programs: str) -> None:
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")


def build(folder: Path, *options: str) -> Path:
    configure = ["cmake", "-S", str(SOURCE), "-B", str(folder), "-DSERVING_OPS_SELFCHECK=ON", *options]
    subprocess.run(configure, check=True, capture_output=True, text=True)
    subprocess.run(["cmake", "--build", str(folder)], check=True, capture_output=True, text=True)
    return folder / "selfcheck"


def check(*command: str) -> str:
    ran = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def test_every_instruction_set_of_this_cpu_agrees_with_double_precision(tmp_path: Path) -> None:
    require("cmake", "c++")
    assert "portable" in check(str(build(tmp_path)))


@pytest.mark.slow
def test_neon_agrees_with_double_precision_under_qemu(tmp_path: Path) -> None:
    require("cmake", CROSS_COMPILER, EMULATOR)
    target = ["-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64"]
    program = build(tmp_path, *target, f"-DCMAKE_CXX_COMPILER={CROSS_COMPILER}")
    assert "neon" in check(EMULATOR, str(program))
