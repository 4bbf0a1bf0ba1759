"""Which C++ library the package loads, and why it refuses one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import serving_ops
from serving_ops import extension
from serving_ops.integrations.common import rope_text
from serving_ops.kernels import contract
from serving_ops.ops import registry
from serving_ops.version import __version__

pytestmark = pytest.mark.skipif(extension.cpp_library() is None, reason="the C++ library was not built")

WITH_THAT_LIBRARY = """
import importlib.metadata, pathlib, runpy, sys

class File:
    name = "_C.abi3.so"
    locate = staticmethod(lambda: pathlib.Path(sys.argv[1]))

is_file = pathlib.Path.is_file
pathlib.Path.is_file = lambda path: is_file(path) and (path.suffix != ".so" or path == File.locate())
importlib.metadata.files = lambda _: [File]

import torch, serving_ops
x = torch.ones(2, 8)
assert torch.equal(serving_ops.rms_norm(x, None), serving_ops.reference.rms_norm(x, None))
print(serving_ops.counters.snapshot()["rms_norm"], serving_ops.explain("rms_norm", x, None))
sys.argv = ["serving_ops", "doctor"]
runpy.run_module("serving_ops", run_name="__main__")
"""

OTHERS = {
    "another version": (f"version {__version__}", f"version {__version__[:-1]}9", "its version is 0.1.9"),
    "another contract": (contract.DIGEST, contract.DIGEST[::-1], "another kernels/contract.def"),
    "no contract": ("serving_ops contract:", "serving_ops_contract:", "neither its version"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_a_library_that_is_not_this_packages_is_refused(tmp_path: Path, kind: str) -> None:
    said, changed, reason = OTHERS[kind]
    content = Path(str(extension.cpp_library())).read_bytes()
    assert content.count(said.encode()) == 1
    other = tmp_path / extension.LIBRARY_NAME
    other.write_bytes(content.replace(said.encode(), changed.encode()))
    ran = subprocess.run(
        [sys.executable, "-c", WITH_THAT_LIBRARY, str(other)], capture_output=True, text=True, check=False
    )
    calls, *doctor = ran.stdout.splitlines()
    assert "'kernel': 0" in calls, ran.stdout + ran.stderr
    assert reason in calls
    assert "path='reference'" in calls
    assert reason in next(line for line in doctor if line.startswith("  cpu     off"))


def test_this_packages_library_is_taken(tmp_path: Path) -> None:
    same = tmp_path / extension.LIBRARY_NAME
    same.write_bytes(Path(str(extension.cpp_library())).read_bytes())
    command = [sys.executable, "-c", WITH_THAT_LIBRARY, str(same)]
    calls = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()[0]
    assert "'kernel': 1" in calls
    assert "path='cpu'" in calls


def test_the_library_registers_the_operators_that_the_contract_names() -> None:
    text = Path(contract.__file__).with_name("contract.def").read_text()
    forward = [schema for op in registry.OPS.values() for schema in registry.schemas_of(op)]
    defined = {schema.split("(")[0] for schema in (*forward, "rms_norm_backward", "rms_norm_gated_backward")}
    defined |= rope_text.ARGUMENTS.keys()
    for key in ("CPU", "CUDA"):
        names = [line.split("(")[1].split(",")[0] for line in text.splitlines() if line.startswith(f"{key}(")]
        assert names
        for name in names:
            assert torch._C._dispatch_has_kernel_for_dispatch_key(f"serving_ops::{name}", key), name
            assert name in defined or name.endswith("_refusal") or name.startswith("vllm_")


def test_the_counted_ops_are_the_contracts() -> None:
    assert set(contract.OPS) <= set(registry.OPS)
    serving_ops.rms_norm(torch.ones(2, 8), None)
    assert extension.kernel_calls("rms_norm") > 0
    assert extension.kernel_calls("no such op") == 0


ADD_WITHOUT_END = """
import itertools, resource
from serving_ops import extension

resource.setrlimit(resource.RLIMIT_AS, (4096 * int(open("/proc/self/statm").read().split()[0]) + 2**24,) * 2)
try:
    for size in itertools.count():
        extension.add_cuda_variant(0, size, size, 1, 1, 1, 1, 1, 0, False, b"")
except MemoryError:
    print("an error")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space as Linux does")
def test_too_little_memory_for_a_compiled_kernel_is_an_error() -> None:
    ran = subprocess.run([sys.executable, "-c", ADD_WITHOUT_END], capture_output=True, text=True, check=False)
    assert ran.stdout.strip() == "an error", ran.stderr
