"""The launcher in C++ against the launch from Python, on CPU tensors and a driver that only remembers.

For any call both must name the same variant and give the kernel the same grid and parameters: otherwise a call would
never leave Python, or a kernel would read what it should not.
"""

from __future__ import annotations

import ctypes
import itertools
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from serving_ops import plan
from serving_ops.kernels import contract
from serving_ops.kernels.triton import gated, norm
from serving_ops.kernels.triton.launch import SCRATCH_BUFFERS, Launcher
from serving_ops.layout import row_grid
from serving_ops.ops import registry

HERE = Path(__file__).parent
KERNELS = HERE.parents[2] / "kernels"
RENAMED = {
    "aoti_torch_device_type_cuda": "aoti_torch_device_type_cpu",
    "aoti_torch_get_device_index": "fake_get_device_index",
}
SHARED_BYTES = 48
EPS = 1e-5
OFFSET = 1.0


class Last(ctypes.Structure):
    """As in fake_device.cpp."""

    _fields_ = [
        *((name, ctypes.c_uint64) for name in ("launches", "function", "grid_x", "grid_y", "block_x", "shared_bytes")),
        ("attributes", ctypes.c_uint64),
        *((name, ctypes.c_uint64) for name in ("context", "pushes")),
        ("parameters", ctypes.c_uint64 * (len(contract.FIELDS) + 1)),
    ]


class FromPython:
    """Stands for a Launcher and keeps what it is called with."""

    def __init__(self, launcher: Launcher) -> None:
        self.names, self.recipe = launcher.kernel.arg_names, launcher.recipe

    def __call__(self, *call: Any) -> None:
        self.variant, self.plan, self.grid, self.arguments, self.pdl = call


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    if shutil.which("c++") is None:
        pytest.skip("needs a C++ compiler")
    root = Path(torch.__file__).parent
    built = tmp_path_factory.mktemp("fake") / "fake.so"
    sources = [HERE / "fake_device.cpp", KERNELS / "cuda" / "run.cpp"]
    sources += [KERNELS / "operators" / f"{op}.cpp" for op in ("fused_add_rms_norm", "rms_norm", "rms_norm_gated")]
    options = [f"-D{name}={other}" for name, other in RENAMED.items()]
    options.append("-DTORCH_TARGET_VERSION=0x020b000000000000")
    command = ["c++", "-std=c++17", "-O1", "-fPIC", "-shared", *options, f"-I{root / 'include'}"]
    link = [f"-L{root / 'lib'}", "-ltorch_cpu", f"-Wl,-rpath,{root / 'lib'}"]
    subprocess.run([*command, *map(str, sources), *link, "-o", str(built)], check=True)
    fake = torch.library.Library("serving_ops_fake", "DEF")
    for op in registry.OPS.values():
        for schema in registry.schemas_of(op):
            fake.define(schema)
    torch.ops.load_library(str(built))
    handle = ctypes.CDLL(str(built))
    handle.fake_last.restype = ctypes.POINTER(Last)
    handle.fake_add.argtypes = [
        ctypes.c_uint64,
        *[ctypes.c_int64] * 5,
        ctypes.c_void_p,
        ctypes.c_uint32,
        ctypes.c_uint32,
        ctypes.c_int,
        ctypes.c_char_p,
        ctypes.c_int,
    ]
    handle.keep = fake
    return handle


SIZES = {"pointer": 8, "i64": 8, "i32": 4, "fp32": 4}
"""Bytes of a parameter."""


def bits(value: Tensor | float) -> int:
    """A parameter as it lies in memory."""
    if isinstance(value, Tensor):
        return value.data_ptr()
    return struct.unpack("<I", struct.pack("<f", value))[0] if isinstance(value, float) else value


def check_same(library: ctypes.CDLL, python: FromPython, call: Callable[[], object]) -> None:
    last = library.fake_last().contents
    function = next(_functions)
    chosen = python.plan
    rows = (chosen.min_rows, chosen.max_rows, chosen.rows_per_program)
    launch = (function, chosen.num_warps, SHARED_BYTES, int(python.pdl))
    assert python.recipe is not None
    library.fake_add(*python.variant, *rows, *launch, python.recipe, len(python.recipe))
    before = last.launches
    call()
    assert last.launches == before + 1, "C++ did not find the variant"
    assert last.function == function
    assert (last.grid_x, last.grid_y, 1) == python.grid
    assert (last.block_x, last.shared_bytes, last.attributes) == (32 * chosen.num_warps, SHARED_BYTES, python.pdl)
    scratch = len(python.recipe) - SCRATCH_BUFFERS
    for name, place in zip(python.names[:scratch], range(scratch), strict=True):
        got = last.parameters[place] & (1 << 8 * SIZES[contract.FIELDS[name]]) - 1
        assert got == bits(python.arguments[name]), (name, got)
    assert not any(last.parameters[scratch : len(python.recipe)])


_functions = itertools.count(0x1000)


@st.composite
def rows_of(draw: st.DrawFn, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A view of a wider buffer, at any element, with its leading dimensions in order or swapped."""
    gaps = [draw(st.sampled_from([0, 0, 1, 8])) for _ in shape]
    start = draw(st.sampled_from([0, 0, 1, 8]))
    strides, reach = [0] * len(shape), 1
    order = list(range(len(shape) - 1))
    if draw(st.booleans()):
        order.reverse()
    for dim in [len(shape) - 1, *reversed(order)]:
        strides[dim] = reach
        reach = reach * shape[dim] + gaps[dim]
    buffer = torch.zeros(start + reach + 16, dtype=dtype)
    return torch.as_strided(buffer, shape, strides, start)


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    size = draw(st.sampled_from([1, 24, 64, 128, 520, 1023, 2048]))
    leading = draw(st.lists(st.sampled_from([1, 2, 3, 300]), min_size=0, max_size=2))
    dtype = draw(st.sampled_from([torch.bfloat16, torch.float16, torch.float32]))
    shape = (*leading, size)
    groups = draw(st.sampled_from([g for g in (1, 2, 4) if size % g == 0]))
    kinds = st.sampled_from([None, dtype, torch.float32])
    return {
        "x": draw(rows_of(shape, dtype)),
        "other": draw(rows_of(shape, dtype)),
        "z": draw(st.one_of(st.none(), rows_of(shape, dtype))),
        "weight": draw(kinds),
        "bias": draw(kinds),
        "offset": draw(st.sampled_from([0.0, OFFSET])),
        "group": size // groups,
        "before": draw(st.booleans()),
        "activation": draw(st.sampled_from(["silu", "swish", "sigmoid"])),
        "pdl": draw(st.booleans()),
    }


def parameter(case: dict[str, Any], name: str) -> Tensor | None:
    return None if case[name] is None else torch.zeros(case["x"].shape[-1], dtype=case[name])


relaxed = settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))


@relaxed
@given(case=cases(), fused=st.booleans())
def test_norms_are_launched_from_cpp_as_from_python(library: ctypes.CDLL, case: dict[str, Any], fused: bool) -> None:
    x, other, weight = case["x"], case["other"], parameter(case, "weight")
    residual, out = (other, x) if fused else (None, other)
    grid = row_grid(x, x if residual is None else residual, out)
    if grid is None:
        return
    chosen = plan.plan_norm(x.shape[-1], x.itemsize, grid.num_rows)
    python = FromPython(norm._LAUNCHERS[chosen.kernel])
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(norm._LAUNCHERS, chosen.kernel, python)
        norm.run_norm(x, residual, weight, out, EPS, case["offset"], grid, chosen, case["pdl"])
    ops = torch.ops.serving_ops_fake
    if fused:
        check_same(library, python, lambda: ops.fused_add_rms_norm(x, other, weight, EPS, weight_offset=case["offset"]))
    else:
        check_same(library, python, lambda: ops.rms_norm.out(x, weight, EPS, weight_offset=case["offset"], out=out))


@relaxed
@given(case=cases())
def test_gated_norms_are_launched_from_cpp_as_from_python(library: ctypes.CDLL, case: dict[str, Any]) -> None:
    x, z, out = case["x"], case["z"], case["other"]
    weight, bias, group = parameter(case, "weight"), parameter(case, "bias"), case["group"]
    grid = row_grid(x, x if z is None else z, out)
    if grid is None:
        return
    python = FromPython(gated._launcher)
    chosen = plan.plan_gated(group, x.itemsize, grid.num_rows * (x.shape[-1] // group))
    assert chosen is not None
    options = {"norm_before_gate": case["before"], "activation": case["activation"], "group_size": group}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gated, "_launcher", python)
        sigmoid = case["activation"] == "sigmoid"
        gated.run_gated(x, z, weight, bias, out, EPS, case["before"], sigmoid, group, grid, chosen, case["pdl"])
    ops = torch.ops.serving_ops_fake
    check_same(library, python, lambda: ops.rms_norm_gated.out(x, z, weight, EPS, bias=bias, **options, out=out))


FRESH = -1
"""The device of a thread that has not used CUDA."""

INVALID_VALUE = 1


@pytest.fixture
def devices(library: ctypes.CDLL) -> Iterator[Callable[..., None]]:
    """Puts tensors on one device and the thread on another, and adds a variant for `rms_norm` of (3, 64) fp32."""

    def put(*, tensors: int, thread: int, result: int = 0) -> None:
        library.fake_devices(tensors, thread, result)
        flags = 1 << contract.FLAGS["flat"] | 1 << contract.FLAGS["aligned"] | tensors << contract.FLAGS["device"]
        library.fake_add(flags, 64, 64, 1, plan.MAX_ROWS, 1, next(_functions), 1, 0, 0, b"", 0)

    yield put
    library.fake_devices(0, 0, 0)


@pytest.mark.parametrize("thread", [0, 2, FRESH])
def test_a_device_that_is_not_current_is_made_so_for_the_launch(
    library: ctypes.CDLL, devices: Callable[..., None], thread: int
) -> None:
    devices(tensors=1, thread=thread)
    last, x = library.fake_last().contents, torch.zeros(3, 64)
    launches, pushes = last.launches, last.pushes
    torch.ops.serving_ops_fake.rms_norm.out(x, None, out=torch.zeros(3, 64))
    assert (last.launches, last.pushes) == (launches + 1, pushes + 1)
    assert last.context == 0x101
    assert library.fake_current() == thread


def test_a_current_device_is_left_alone(library: ctypes.CDLL, devices: Callable[..., None]) -> None:
    devices(tensors=1, thread=1)
    last, x = library.fake_last().contents, torch.zeros(3, 64)
    launches, pushes = last.launches, last.pushes
    torch.ops.serving_ops_fake.rms_norm.out(x, None, out=torch.zeros(3, 64))
    assert (last.launches, last.pushes) == (launches + 1, pushes)


def test_a_failed_launch_gives_the_device_back(library: ctypes.CDLL, devices: Callable[..., None]) -> None:
    devices(tensors=1, thread=0, result=INVALID_VALUE)
    with pytest.raises(RuntimeError, match="CUresult 1"):
        torch.ops.serving_ops_fake.rms_norm.out(torch.zeros(3, 64), None, out=torch.zeros(3, 64))
    assert library.fake_current() == 0
