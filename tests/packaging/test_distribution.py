"""What the built wheel holds, with and without a compiler, and what a checkout must not shadow."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def build(directory: Path, **environment: str) -> Path:
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", directory, ROOT],
        check=True,
        env=os.environ | environment,
    )
    (wheel,) = directory.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def pure_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("pure"), CXX="/no/compiler/here")


def names(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def test_the_wheel_installs_one_import_root(wheel: Path) -> None:
    tops = {name.split("/")[0] for name in names(wheel)}
    assert "serving_ops" in tops
    assert all(top == "serving_ops" or top.endswith(".dist-info") for top in tops)


def test_the_wheel_holds_the_folders_and_the_library(wheel: Path) -> None:
    held = set(names(wheel))
    for name in (
        "serving_ops/ops/rms_norm.py",
        "serving_ops/kernels/triton/norm.py",
        "serving_ops/integrations/vllm/__init__.py",
        "serving_ops/bench_e2e/__main__.py",
        "serving_ops/_C.abi3.so",
        "serving_ops/py.typed",
    ):
        assert name in held
    assert "abi3" in wheel.name
    assert not [name for name in held if name.startswith("serving_ops/") and Path(name).name.startswith("test_")]


def test_engines_find_the_plugins(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (path,) = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
        text = archive.read(path).decode()
    assert "[vllm.general_plugins]\nserving_ops = serving_ops.integrations.vllm:register" in text
    assert "[sglang.srt.plugins]\nserving_ops = serving_ops.integrations.sglang:register" in text


def test_without_a_compiler_a_pure_wheel_is_built_that_works(pure_wheel: Path, tmp_path: Path) -> None:
    assert pure_wheel.name.endswith("py3-none-any.whl")
    assert not [name for name in names(pure_wheel) if name.endswith(".so")]
    with zipfile.ZipFile(pure_wheel) as archive:
        archive.extractall(tmp_path)
    program = (
        "import torch, serving_ops, pathlib\n"
        f"assert pathlib.Path(serving_ops.__file__).is_relative_to({str(tmp_path)!r}), serving_ops.__file__\n"
        "import serving_ops.integrations.vllm, serving_ops.bench_e2e.cli\n"
        "assert serving_ops.cpp_library() is None\n"
        "x = torch.randn(2, 64)\n"
        "assert torch.equal(serving_ops.rms_norm(x, None), serving_ops.reference.rms_norm(x, None))\n"
    )
    # -S keeps the editable install's import hook, which a .pth file loads, out of the way.
    site_packages = [path for path in sys.path if path.endswith("site-packages")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *site_packages])}
    subprocess.run([sys.executable, "-S", "-c", program], check=True, cwd=tmp_path, env=environment)


def test_a_checkout_does_not_shadow_the_published_kernels_package(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", tmp_path, "kernels"]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("the published `kernels` package cannot be installed here")
    program = f"import kernels; assert kernels.__file__.startswith({str(tmp_path)!r}); import transformers; "
    program += "from transformers import Qwen2ForCausalLM"
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT, env=environment)


def test_the_folders_at_the_top_carry_no_init() -> None:
    for folder in ("kernels", "integrations", "bench_e2e"):
        assert not (ROOT / folder / "__init__.py").exists()
