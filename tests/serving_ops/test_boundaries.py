"""Who may import whom, and what importing must not do. Each check is a fresh process."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeGuard

import pytest
import torch

import serving_ops

ROOT = Path(__file__).resolve().parents[2]


def run(program: str) -> None:
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("forbidden", ["vllm", "sglang", "triton", "transformers", "matplotlib"])
def test_the_package_imports_without(forbidden: str) -> None:
    run(f"import sys, serving_ops; sys.exit({forbidden!r} in sys.modules)")


def test_the_modules_are_imported_when_they_are_named() -> None:
    run("import sys, serving_ops; sys.exit('serving_ops.nn' in sys.modules)")
    run("import serving_ops; serving_ops.nn.RMSNorm(8)")


def test_another_name_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="module 'serving_ops' has no attribute 'layer_norm'"):
        getattr(serving_ops, "layer_norm")  # noqa: B009


def test_importing_does_not_initialise_cuda() -> None:
    run("import sys, torch, serving_ops; sys.exit(torch.cuda.is_initialized())")


def test_a_cpu_call_needs_no_triton() -> None:
    call = "serving_ops.rms_norm(torch.ones(2, 8), None)"
    run(f"import sys, torch, serving_ops; {call}; sys.exit('triton' in sys.modules)")


def test_every_folder_is_importable_under_the_package() -> None:
    run("import serving_ops.integrations.vllm, serving_ops.integrations.sglang, serving_ops.bench_e2e.cli")


ENGINES = ("vllm", "sglang")
UPPER = ("serving_ops.integrations", "serving_ops.bench_e2e")
MAY_NOT_NAME = {
    "kernels": ("serving_ops", *ENGINES),
    "serving_ops": (*UPPER, *ENGINES),
    "integrations": ("serving_ops.bench_e2e",),
    "integrations/common": ("serving_ops.integrations.vllm", "serving_ops.integrations.sglang", *ENGINES),
    "integrations/vllm": ("serving_ops.integrations.sglang", "sglang"),
    "integrations/sglang": ("serving_ops.integrations.vllm", "vllm"),
}
MAY_ALL_THE_SAME = {
    "kernels": ("serving_ops.kernels",),
    "serving_ops": ("serving_ops.integrations.vllm.model_doctor",),  # `doctor --model`, which imports it when asked
}


def named_modules(source: str) -> Iterator[str]:
    """Modules that a file imports by a statement or by a function, and those of ours that a string names."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in BY_NAME:
            yield from (text.value for text in ast.walk(node) if _is_text(text))
        elif _is_text(node) and node.value.startswith("serving_ops."):
            yield node.value


BY_NAME = ("import_module", "__import__", "find_spec", "run_module")


def _is_text(node: ast.AST) -> TypeGuard[Any]:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _is_in(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


@pytest.mark.parametrize("folder", MAY_NOT_NAME)
def test_lower_folders_do_not_name_upper_ones(folder: str) -> None:
    for path in (ROOT / folder).rglob("*.py"):
        wrong = [name for name in named_modules(path.read_text()) if _is_in(name, MAY_NOT_NAME[folder])]
        wrong = [name for name in wrong if not _is_in(name, MAY_ALL_THE_SAME.get(folder, ()))]
        assert not wrong, f"{path.relative_to(ROOT)} names {wrong}"


@pytest.mark.parametrize(
    "line",
    [
        "import serving_ops.bench_e2e.cli",
        "from serving_ops import bench_e2e",
        "from serving_ops.bench_e2e import cli",
        "x = 1; from serving_ops.bench_e2e.cli import main",
        "importlib.import_module('serving_ops.bench_e2e.cli')",
        "import_module(f'serving_ops.bench_e2e.{name}')",
        "COMMAND = ['-m', 'serving_ops.bench_e2e']",
    ],
)
def test_every_way_to_name_a_module_is_seen(line: str) -> None:
    assert any(_is_in(name, ("serving_ops.bench_e2e",)) for name in named_modules(line))


def test_a_process_forked_after_the_import_runs_the_ops(device: torch.device) -> None:
    """CUDA is first used in the child: no process can use it on both sides of a fork."""
    call = f"serving_ops.rms_norm(torch.ones(2, 4096, dtype=torch.bfloat16, device={str(device)!r}), None)"
    run(
        "import os, sys, torch, serving_ops\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        f"    results = [{call} for _ in range(2)]\n"
        "    os._exit(not all(bool((result == 1).all()) for result in results))\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )


NAMED_BY_OTHERS = {"__init__.py", "__main__.py", "conftest.py"}


def test_no_two_files_have_one_name() -> None:
    """Tracebacks and searches show names. The engines' folders mirror each other."""
    kinds = (".py", ".cpp", ".h", ".cu")
    folders = ("serving_ops", "kernels", "integrations", "bench_e2e", "tests")
    places: dict[str, set[str]] = {}
    for folder in folders:
        for file in (ROOT / folder).rglob("*"):
            if file.suffix in kinds and file.name not in NAMED_BY_OTHERS and "stand_in" not in file.parts:
                parent = str(file.relative_to(ROOT).parent)
                places.setdefault(file.name, set()).add(parent.replace("sglang", "vllm"))
    assert "test_boundaries.py" in places
    assert {name: found for name, found in places.items() if len(found) > 1} == {}
