"""The C++ library: where it is, whether it is there, what it holds and how many calls it ran.

Loading it registers its functions for CPU and CUDA tensors under the operators in `schemas`. Without it (the package
was built without a compiler or without torch) the reference serves CPU tensors, and Python launches CUDA kernels.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from serving_ops import schemas as schemas  # the operators must be defined before functions register for them
from serving_ops import settings

LIBRARY_NAME = "_C.abi3.so"

_library: Path | None = None
_handle: ctypes.CDLL | None = None
_why_missing = "not looked for yet"


def _find() -> Path | None:
    """Beside this file, or, where an editable install put it, in site-packages."""
    beside = Path(__file__).with_name(LIBRARY_NAME)
    if beside.is_file():
        return beside
    try:
        files = importlib.metadata.files("serving-ops") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    for file in files:
        if file.name == LIBRARY_NAME:
            path = Path(str(file.locate()))
            return path if path.is_file() else None
    return None


def _declare(handle: ctypes.CDLL) -> None:
    handle.serving_ops_kernel_calls.restype = ctypes.c_uint64
    handle.serving_ops_kernel_calls.argtypes = [ctypes.c_int]
    handle.serving_ops_cpu_isa.restype = ctypes.c_char_p
    rows: list[Any] = [ctypes.c_int64, ctypes.c_void_p]  # their leading dimensions
    tensor: list[Any] = [ctypes.c_void_p, ctypes.c_void_p]
    parameter: list[Any] = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int]
    handle.serving_ops_cpu_rms_norm_backward.restype = ctypes.c_int
    handle.serving_ops_cpu_rms_norm_backward.argtypes = [
        *(ctypes.c_int, ctypes.c_int64, ctypes.c_double, ctypes.c_double),
        *(rows + 4 * tensor + parameter),
    ]
    handle.serving_ops_cpu_rms_norm_gated_backward.restype = ctypes.c_int
    handle.serving_ops_cpu_rms_norm_gated_backward.argtypes = [
        *(ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_double, ctypes.c_int, ctypes.c_int),
        *(rows + 5 * tensor + 2 * parameter),
    ]
    handle.serving_ops_cuda_add_variant.restype = None
    handle.serving_ops_cuda_add_variant.argtypes = [
        ctypes.c_uint64,
        *[ctypes.c_int64] * 5,
        ctypes.c_void_p,
        ctypes.c_uint32,
        ctypes.c_uint32,
        ctypes.c_int,
    ]


def _load() -> None:
    global _library, _handle, _why_missing
    path = _find()
    if path is None:
        _why_missing = "the C++ library was not built (no compiler or no torch at install time)"
        return
    try:
        torch.ops.load_library(str(path))
        handle = ctypes.CDLL(str(path))
        _declare(handle)
        _choose_instruction_set(handle)
    except (OSError, AttributeError) as error:
        _why_missing = f"the C++ library did not load: {error}"
        return
    _library, _handle = path, handle


def _choose_instruction_set(handle: ctypes.CDLL) -> None:
    wanted = settings.cpu_isa()
    if wanted is not None and not handle.serving_ops_cpu_use(ctypes.c_char_p(wanted.encode())):
        settings.refuse(settings.CPU_ISA, f"is not possible: this processor or build has no {wanted} kernels")


def cpp_library() -> Path | None:
    """The loaded C++ library, or None."""
    return _library


def why_missing() -> str | None:
    """Why there is no C++ library; None where there is one."""
    return None if _library is not None else _why_missing


def instruction_set() -> str | None:
    """Which of the library's kernels this CPU runs: "avx512", "avx2", "neon" or "portable"."""
    return None if _handle is None else _handle.serving_ops_cpu_isa().decode()


def kernel_calls(op_index: int) -> int:
    """Calls that the library ran on kernels, of either device, by the op's place in `counters.OPS`."""
    return 0 if _handle is None else int(_handle.serving_ops_kernel_calls(op_index))


def add_cuda_variant(
    flags: int,
    size: int,
    group_size: int,
    min_rows: int,
    max_rows: int,
    rows_per_program: int,
    function: int,
    num_warps: int,
    shared_bytes: int,
    dependent: bool,
) -> None:
    """Let the library launch a kernel that Triton has compiled: `kernels/cuda/variants.h` says what each means."""
    if _handle is not None:
        _handle.serving_ops_cuda_add_variant(
            flags,
            size,
            group_size,
            min_rows,
            max_rows,
            rows_per_program,
            function,
            num_warps,
            shared_bytes,
            int(dependent),
        )


DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""In the order of `Dtype` in `kernels/operators/spec.h`."""

MOST_DIMS = 7
"""Of a tensor whose gradient the library takes as it lies: `RowSpace::kMaxDims` leading ones and the row."""


def _sizes(leading: tuple[int, ...]) -> ctypes.Array[ctypes.c_int64]:
    return (ctypes.c_int64 * len(leading))(*leading)


def _tensor(tensor: Tensor | None, rank: int) -> tuple[int | None, ctypes.Array[ctypes.c_int64]]:
    """Where it is, and the strides of its leading dimensions."""
    if tensor is None:
        return None, _sizes((0,) * (rank - 1))
    return tensor.data_ptr(), _sizes(tensor.stride()[:-1])


def _parameter(parameter: Tensor | None, gradient: Tensor | None) -> tuple[int | None, int | None, int]:
    if parameter is None or gradient is None:
        return None, None, 0
    return parameter.data_ptr(), gradient.data_ptr(), DTYPES.index(parameter.dtype)


def _check(failed: int) -> None:
    if failed:
        raise RuntimeError(f"serving_ops: the library returned {failed}")


def cpu_rms_norm_backward(
    dout: Tensor,
    s: Tensor,
    ds_more: Tensor | None,
    weight: Tensor | None,
    eps: float,
    weight_offset: float,
    ds: Tensor,
    dweight: Tensor | None,
) -> None:
    """Write ds and dweight.

    dout, s, ds_more and ds have one shape, of at most `MOST_DIMS` dimensions, and one of `DTYPES`; elements of a row
    lie side by side. weight and dweight are (N,) contiguous, of one dtype, or None.
    """
    assert _handle is not None
    failed = _handle.serving_ops_cpu_rms_norm_backward(
        DTYPES.index(s.dtype),
        s.shape[-1],
        eps,
        weight_offset,
        s.dim() - 1,
        _sizes(s.shape[:-1]),
        *_tensor(dout, s.dim()),
        *_tensor(s, s.dim()),
        *_tensor(ds_more, s.dim()),
        *_tensor(ds, s.dim()),
        *_parameter(weight, dweight),
    )
    _check(failed)


def cpu_rms_norm_gated_backward(
    dout: Tensor,
    x: Tensor,
    z: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    norm_before_gate: bool,
    silu: bool,
    group_size: int,
    dx: Tensor,
    dz: Tensor | None,
    dweight: Tensor | None,
    dbias: Tensor | None,
) -> None:
    """Write dx, dz, dweight and dbias: tensors as `cpu_rms_norm_backward` wants them."""
    assert _handle is not None
    failed = _handle.serving_ops_cpu_rms_norm_gated_backward(
        DTYPES.index(x.dtype),
        x.shape[-1],
        group_size,
        eps,
        int(norm_before_gate),
        int(silu),
        x.dim() - 1,
        _sizes(x.shape[:-1]),
        *_tensor(dout, x.dim()),
        *_tensor(x, x.dim()),
        *_tensor(z, x.dim()),
        *_tensor(dx, x.dim()),
        *_tensor(dz, x.dim()),
        *_parameter(weight, dweight),
        *_parameter(bias, dbias),
    )
    _check(failed)


_load()
