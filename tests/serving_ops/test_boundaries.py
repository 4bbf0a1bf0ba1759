"""Who may import whom, and what importing must not do. Each check is a fresh process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


def run(program: str) -> None:
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("forbidden", ["vllm", "sglang", "triton", "transformers", "matplotlib"])
def test_the_package_imports_without(forbidden: str) -> None:
    run(f"import sys, serving_ops; sys.exit({forbidden!r} in sys.modules)")


def test_importing_does_not_initialise_cuda() -> None:
    run("import sys, torch, serving_ops; sys.exit(torch.cuda.is_initialized())")


def test_a_cpu_call_needs_no_triton() -> None:
    call = "serving_ops.rms_norm(torch.ones(2, 8), None)"
    run(f"import sys, torch, serving_ops; {call}; sys.exit('triton' in sys.modules)")


def test_every_folder_is_importable_under_the_package() -> None:
    run("import serving_ops.integrations.vllm, serving_ops.integrations.sglang, serving_ops.bench_e2e.cli")


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [
        ("kernels", ("serving_ops.integrations", "serving_ops.bench_e2e", "serving_ops.ops", "vllm", "sglang")),
        ("serving_ops", ("serving_ops.integrations", "serving_ops.bench_e2e", "vllm", "sglang")),
        ("integrations", ("serving_ops.bench_e2e",)),
    ],
)
def test_lower_folders_do_not_name_upper_ones(folder: str, forbidden: tuple[str, ...]) -> None:
    for path in (ROOT / folder).rglob("*.py"):
        for line in path.read_text().splitlines():
            words = line.split()
            if words[:1] in (["import"], ["from"]):
                assert not words[1].startswith(forbidden), f"{path.relative_to(ROOT)}: {line}"


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
