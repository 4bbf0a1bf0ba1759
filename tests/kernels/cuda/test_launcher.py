"""The C++ launcher: what it declares of the driver, and that calls of a compiled variant never come back to Python."""

from __future__ import annotations

import shutil
import subprocess
import threading
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from every_kind import calls_of_every_kind

import serving_ops
from serving_ops import counters, extension

KERNELS = Path(__file__).parents[3] / "kernels"
BF16 = torch.bfloat16


def cuda_header() -> Path | None:
    """The driver's own header, as Triton carries it."""
    triton = find_spec("triton")
    if triton is None or triton.origin is None:
        return None
    header = Path(triton.origin).parent / "backends" / "nvidia" / "include" / "cuda.h"
    return header if header.is_file() else None


def test_the_drivers_structures_are_declared_as_the_driver_declares_them(tmp_path: Path) -> None:
    header = cuda_header()
    if header is None or shutil.which("c++") is None:
        pytest.skip("needs a C++ compiler and Triton's cuda.h")
    pairs = {
        "gridDimX": "grid_x",
        "gridDimZ": "grid_z",
        "blockDimX": "block_x",
        "blockDimZ": "block_z",
        "sharedMemBytes": "shared_bytes",
        "hStream": "stream",
        "attrs": "attributes",
        "numAttrs": "num_attributes",
    }
    same = "".join(
        f"static_assert(offsetof(CUlaunchConfig, {theirs}) == offsetof(LaunchConfig, {ours}));\n"
        for theirs, ours in pairs.items()
    )
    source = tmp_path / "check.cpp"
    source.write_text(
        f'#include <cstddef>\n#include "{header}"\n#include "{KERNELS}/cuda/driver.h"\n'
        "using namespace serving_ops::cuda;\n"
        f"{same}"
        "static_assert(sizeof(CUlaunchConfig) == sizeof(LaunchConfig));\n"
        "static_assert(sizeof(CUlaunchAttribute) == sizeof(LaunchAttribute));\n"
        "static_assert(offsetof(CUlaunchAttribute, value) == offsetof(LaunchAttribute, value));\n"
        "static_assert(CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION == kProgrammaticStreamSerialization);\n"
        "static_assert(CUDA_ERROR_INVALID_CONTEXT == kInvalidContext);\n"
    )
    built = subprocess.run(["c++", "-std=c++17", "-fsyntax-only", source], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr


def test_variants_are_found_by_key_and_by_rows(tmp_path: Path) -> None:
    if shutil.which("c++") is None:
        pytest.skip("needs a C++ compiler")
    source, program = tmp_path / "check.cpp", tmp_path / "check"
    source.write_text(
        f'#undef NDEBUG\n#include <cassert>\n#include "{KERNELS}/cuda/variants.h"\n'
        "using namespace serving_ops::cuda;\n"
        "int main() {\n"
        "  Variants variants; Variant found{}; int few, many, wide;\n"
        "  assert(!variants.find({1, 128, 128}, 1, &found));\n"
        "  variants.add({1, 128, 128}, {1, 256, 1, &few, 32, 0, true});\n"
        "  variants.add({1, 128, 128}, {257, 1000, 8, &many, 32, 0, true});\n"
        "  variants.add({1, 256, 128}, {1, 1000, 1, &wide, 64, 0, false});\n"
        "  assert(variants.find({1, 128, 128}, 256, &found) && found.function == &few);\n"
        "  assert(variants.find({1, 128, 128}, 257, &found) && found.function == &many);\n"
        "  assert(!variants.find({1, 128, 128}, 1001, &found) && !variants.find({3, 128, 128}, 1, &found));\n"
        "  assert(variants.find({1, 256, 128}, 1, &found) && found.function == &wide);\n"
        "  variants.add({1, 128, 128}, {1, 256, 1, &wide, 32, 0, true});\n"
        "  assert(variants.find({1, 128, 128}, 1, &found) && found.function == &wide);\n"
        "}\n"
    )
    subprocess.run(["c++", "-std=c++17", "-pthread", source, "-o", program], check=True)
    subprocess.run([program], check=True)


@pytest.mark.gpu
@pytest.mark.skipif(extension.cpp_library() is None, reason="the C++ library was not built")
def test_a_second_call_of_every_kind_is_launched_from_cpp() -> None:
    def launched_from_cpp() -> int:
        return sum(extension.kernel_calls(index) for index in range(len(counters.OPS)))

    for kind, call in calls_of_every_kind().items():
        call()
        before = launched_from_cpp()
        call()
        assert launched_from_cpp() == before + 1, kind


@pytest.mark.gpu
def test_a_thread_whose_first_use_of_cuda_is_a_norm() -> None:
    x, weight = torch.randn(3, 4096, dtype=BF16, device="cuda"), torch.randn(4096, dtype=BF16, device="cuda")
    out = torch.empty_like(x)
    want = serving_ops.rms_norm(x, weight)
    torch.cuda.synchronize()
    failures: list[BaseException] = []

    def work() -> None:
        try:
            serving_ops.rms_norm(x, weight, out=out)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    torch.cuda.synchronize()
    assert not failures
    assert torch.equal(out, want)
