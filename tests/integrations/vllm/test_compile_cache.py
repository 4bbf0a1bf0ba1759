"""The hash of our sources in vLLM's compile-cache keys: ranks must agree on it, however the package was installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from serving_ops import extension
from serving_ops.integrations.vllm import compile_cache

ROOT = Path(__file__).resolve().parents[3]
SEEDS = ("0", "1", "2", "3")
HASH = "from serving_ops.integrations.vllm import compile_cache as c; import serving_ops as s"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """site-packages with the package as a wheel lays it out: the folders at the top of a checkout lie inside it."""
    site_packages = tmp_path_factory.mktemp("site-packages")
    scikit_build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["scikit-build"]
    for inside, folder in scikit_build["wheel"]["packages"].items():
        shutil.copytree(ROOT / folder, site_packages / inside, ignore=shutil.ignore_patterns("*.json", "__pycache__"))
    return site_packages


def hash_in(site_packages: Path, seed: str) -> str:
    """The hash in a process that imports the package from there. -S: no .pth file adds a checkout to the path."""
    paths = [str(site_packages), *[path for path in sys.path if path.endswith("site-packages")]]
    environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(paths), "SERVING_OPS": "off"}
    command = [sys.executable, "-S", "-W", "ignore", "-c", f"{HASH}; print(s.__file__, c.source_hash())"]
    done = subprocess.run(command, env=environment, cwd=site_packages, capture_output=True, text=True, check=True)
    file, source_hash = done.stdout.split()
    assert Path(file).is_relative_to(site_packages)
    return source_hash


def test_a_regular_install_has_the_checkouts_hash_whatever_the_hash_seed(installed: Path) -> None:
    assert {seed: hash_in(installed, seed) for seed in SEEDS} == dict.fromkeys(SEEDS, compile_cache.source_hash())


def test_the_hash_covers_what_compiled_graphs_depend_on_and_no_bench() -> None:
    names = set(compile_cache.sources())
    assert {"ops/rms_norm.py", "kernels/triton/norm.py", "integrations/vllm/priority.py"} <= names
    assert {name.split("/")[0] for name in names if "/" in name} == {"ops", "training", "kernels", "integrations"}
    assert not [name for name in names if name.startswith("integrations/sglang")]


def test_the_hash_changes_where_a_file_moves_or_changes(installed: Path) -> None:
    before = hash_in(installed, "0")
    (installed / "serving_ops" / "bench_e2e" / "plot.py").write_text("changed = True\n")
    assert hash_in(installed, "0") == before
    moved = installed / "serving_ops" / "ops" / "moved.py"
    (installed / "serving_ops" / "integrations" / "common" / "moved.py").write_text("")
    there = hash_in(installed, "0")
    (installed / "serving_ops" / "integrations" / "common" / "moved.py").rename(moved)
    assert len({before, there, hash_in(installed, "0")}) == 3


def test_the_key_changes_with_the_presence_of_the_cpp_library(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = set()
    for library in (None, Path("_C.abi3.so")):
        monkeypatch.setattr(extension, "cpp_library", lambda library=library: library)
        keys.add(compile_cache.compile_key())
    assert len(keys) == 2
