"""The C++ launcher: what it declares of the driver, and that calls of a compiled variant never come back to Python."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import serving_ops
from serving_ops import QuantFormat, extension
from serving_ops.kernels import contract
from serving_ops.kernels.launches import Quantized
from serving_ops.kernels.triton import epilogue, gated, norm
from serving_ops.kernels.triton.backward import run_backward
from serving_ops.kernels.triton.launch import SCRATCH_BUFFERS, Launcher
from serving_ops.kernels.triton.variant import flags_of

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
        "  variants.add({1, 128, 128}, {1, 256, 1, &few, 32, 0, true, {}});\n"
        "  variants.add({1, 128, 128}, {257, 1000, 8, &many, 32, 0, true, {}});\n"
        "  variants.add({1, 256, 128}, {1, 1000, 1, &wide, 64, 0, false, {}});\n"
        "  assert(variants.find({1, 128, 128}, 256, &found) && found.function == &few);\n"
        "  assert(variants.find({1, 128, 128}, 257, &found) && found.function == &many);\n"
        "  assert(!variants.find({1, 128, 128}, 1001, &found) && !variants.find({3, 128, 128}, 1, &found));\n"
        "  assert(variants.find({1, 256, 128}, 1, &found) && found.function == &wide);\n"
        "  variants.add({1, 128, 128}, {1, 256, 1, &wide, 32, 0, true, {}});\n"
        "  assert(variants.find({1, 128, 128}, 1, &found) && found.function == &wide);\n"
        "}\n"
    )
    subprocess.run(["c++", "-std=c++17", "-pthread", source, "-o", program], check=True)
    subprocess.run([program], check=True)


def test_a_recipe_has_the_field_of_each_parameter_and_the_scratch_buffers() -> None:
    def kernel(out_ptr, eps: tl.float32, x_ptr, N: tl.constexpr):  # type: ignore[no-untyped-def] # noqa: F821
        pass

    recipe = Launcher(SimpleNamespace(fn=kernel, arg_names=["out_ptr", "eps", "x_ptr", "N"])).recipe
    assert recipe is not None
    names = list(contract.FIELDS)
    assert [names[place] for place in recipe] == ["out_ptr", "eps", "x_ptr", *["scratch"] * SCRATCH_BUFFERS]


def test_cpp_launches_norms_but_not_their_gradients() -> None:
    launchers = {name: value for name, value in vars(run_backward).items() if isinstance(value, Launcher)}
    assert launchers
    assert not [name for name, launcher in launchers.items() if launcher.recipe is not None]
    quantizing = (*norm._QUANTIZING.values(), gated._quantizing)
    assert all(
        launcher.recipe
        for launcher in (*norm._LAUNCHERS.values(), *norm._IN_PAIRS.values(), gated._launcher, *quantizing)
    )


def compiled_kernel(**other: Any) -> Any:
    """As Triton compiles `norm_rows_kernel`; other: what is otherwise."""
    types = {name: "constexpr" for name in norm._LAUNCHERS["row"].kernel.arg_names}
    types |= {name: "*bf16" if kind == "pointer" else kind for name, kind in contract.FIELDS.items() if name in types}
    of_kernel = {"name": "kernel", "num_ctas": 1} | other
    types |= {name: kind for name, kind in other.items() if name in types}
    passed = sum(kind != "constexpr" for kind in types.values()) + other.get("more_parameters", SCRATCH_BUFFERS)
    return SimpleNamespace(
        metadata=SimpleNamespace(**of_kernel),
        src=SimpleNamespace(signature=types),
        asm={"ptx": "".join(f".param .u64 kernel_param_{place}," for place in range(passed))},
    )


@pytest.mark.parametrize(
    "other",
    [{"num_rows": "i64"}, {"eps": "fp64"}, {"x_ptr": "i64"}, {"more_parameters": 3}, {"num_ctas": 2},
     {"launch_cooperative_grid": True}, {"global_scratch_size": 8}],
    ids=str,
)  # fmt: skip
def test_cpp_does_not_launch_what_triton_compiled_in_another_way(other: dict[str, Any]) -> None:
    launcher = norm._LAUNCHERS["row"]
    assert launcher.recipe is not None
    assert launcher._is_plain(compiled_kernel(), len(launcher.recipe))
    assert not launcher._is_plain(compiled_kernel(**other), len(launcher.recipe))


@pytest.mark.gpu
@pytest.mark.skipif(extension.cpp_library() is None, reason="the C++ library was not built")
def test_every_kind_of_call_comes_back_from_cpp_as_from_python() -> None:
    script = Path(__file__).with_name("every_kind.py")
    ran = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_python_and_cpp_pack_the_same_flags(tmp_path: Path) -> None:
    if shutil.which("c++") is None:
        pytest.skip("needs a C++ compiler")
    x = torch.zeros(2, 64, dtype=BF16)
    python = {
        "1 << kGated": flags_of(x, None, gated=True),
        "1 << kSecond": flags_of(x, None, second=True),
        "1 << kWeightInFp32": flags_of(x, None, weight_in_fp32=True),
        "1 << kGateFirst": flags_of(x, None, gate_first=True),
        "1 << kSigmoid": flags_of(x, None, sigmoid=True),
        "1 << kFlat": flags_of(x, None, flat=True),
        "1 << kAligned": flags_of(x, None, aligned=True),
        "kDtypeOfX << kWeight": flags_of(x, x[0]),
        "kFloat32 << kBias": flags_of(x, None, x[0].float()),
    }
    formats = {
        "0": Quantized(QuantFormat(), None, None),
        "1 << kInt8": Quantized(QuantFormat(dtype=torch.int8), None, None),
        "1 << kNormed": Quantized(QuantFormat(), None, x),
        "uint64_t(serving_ops::ScaleForm::ue8m0) << kScaleForm": Quantized(
            QuantFormat(scale_format="ue8m0"), None, None
        ),
    }
    python |= {f"{name} | 1 << kQuantized": flags_of(x, None, **norm.quant_flags(q)) for name, q in formats.items()}
    bf16 = "(uint64_t(serving_ops::Dtype::bfloat16) << kXDtype)"
    same = "".join(f"static_assert((({name}) | {bf16}) == {flags});\n" for name, flags in python.items())
    source = tmp_path / "check.cpp"
    source.write_text(
        f'#include "{KERNELS}/cuda/variants.h"\n#include "{KERNELS}/operators/spec.h"\n'
        f"using namespace serving_ops::cuda;\n{same}"
    )
    built = subprocess.run(["c++", "-std=c++17", "-fsyntax-only", source], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr


def test_the_contract_has_the_forms_of_a_scale_as_the_kernels_do() -> None:
    forms = epilogue.FP32, epilogue.POWER_OF_2, epilogue.UE8M0
    assert [form.value for form in forms] == [norm.FORMS[name] for name in contract.SCALE_FORMS] == [0, 1, 2]


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
