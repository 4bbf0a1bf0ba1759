"""The C++ library: where it is, whether it is there, what it holds and how many calls it ran.

Loading it registers its functions for CPU and CUDA tensors under the operators of their names. Without it (the package
was built without a compiler or without torch) the reference serves CPU tensors, and Python launches CUDA kernels.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import logging
import re
import sys
from pathlib import Path
from typing import Any

import torch

from serving_ops import settings
from serving_ops.kernels import contract
from serving_ops.version import __version__

LIBRARY_NAME = "_C.abi3.so"
REMEDY = (
    "install serving_ops again beside torch and a C++ compiler, with `SERVING_OPS_BUILD=required pip install .`, "
    "which shows what goes wrong in the build"
)

_library: Path | None = None
_handle: ctypes.CDLL | None = None


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


def _why_refused(path: Path) -> str | None:
    """What a library and this package do not agree on, or None.

    Read from the file, since loading a library registers its functions.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        return str(error)
    found = re.search(rb"serving_ops contract: version (\S+) (\w+)\0", content)
    if found is None:
        return "it says neither its version nor what it was built for"
    version, digest = (part.decode(errors="replace") for part in found.groups())
    if version != __version__:
        return f"its version is {version}, this package's is {__version__}"
    if digest != contract.DIGEST:
        return "it was built from another kernels/contract.def: build it again"
    return None


def _declare(handle: ctypes.CDLL) -> None:
    handle.serving_ops_kernel_calls.restype = ctypes.c_uint64
    handle.serving_ops_kernel_calls.argtypes = [ctypes.c_int]
    handle.serving_ops_cpu_isa.restype = ctypes.c_char_p
    handle.serving_ops_cuda_add_variant.restype = ctypes.c_int
    handle.serving_ops_cuda_add_variant.argtypes = [
        ctypes.c_uint64,
        *[ctypes.c_int64] * 5,
        ctypes.c_void_p,
        ctypes.c_uint32,
        ctypes.c_uint32,
        ctypes.c_int,
        ctypes.c_char_p,
        ctypes.c_int,
    ]


def _load() -> str:
    """Load it; returns why there is none, or an empty text."""
    global _library, _handle
    path = _find()
    if path is None:
        return "the C++ library was not built (no compiler or no torch at install time)"
    refused = _why_refused(path)
    if refused is not None:
        return f"{path} is not this package's library: {refused}"
    try:
        torch.ops.load_library(str(path))
        handle = ctypes.CDLL(str(path))
        _declare(handle)
        wanted = settings.cpu_isa()
        if wanted is not None and not handle.serving_ops_cpu_use(ctypes.c_char_p(wanted.encode())):
            settings.refuse(settings.CPU_ISA, f"is not possible: this processor or build has no {wanted} kernels")
    except (OSError, AttributeError) as error:
        return f"the C++ library did not load: {error}"
    _library, _handle = path, handle
    return ""


def cpp_library() -> Path | None:
    """The loaded C++ library, or None."""
    return _library


def why_missing() -> str | None:
    """Why there is no C++ library; None where there is one."""
    return None if _library is not None else _why_missing


def warn_without_library() -> None:
    """Log one warning, with what to do, where the library is missing on a system that it is built for."""
    missing = why_missing()
    if missing is None or sys.platform != "linux":
        return
    logging.getLogger("serving_ops").warning(
        "serving_ops runs without its C++ library: %s. The PyTorch reference serves CPU tensors, and Python launches "
        "the CUDA kernels, at several times the host time. To have the library, %s.",
        *(missing, REMEDY),
    )


def instruction_set() -> str | None:
    """Which of the library's kernels this CPU runs: "avx512", "avx2", "neon" or "portable"."""
    return None if _handle is None else _handle.serving_ops_cpu_isa().decode()


def kernel_calls(op: str) -> int:
    """Calls of an op that the library ran on kernels, of either device; 0 for an op that it does not know."""
    if _handle is None or op not in contract.OPS:
        return 0
    return int(_handle.serving_ops_kernel_calls(contract.OPS.index(op)))


def add_cuda_variant(*launch: Any) -> None:
    """Let the library launch a kernel that Triton has compiled.

    launch: flags, size, group_size, min_rows, max_rows, rows_per_program, function, num_warps, shared_bytes, dependent
    and parameters, which `kernels/cuda/variants.h` explains.
    """
    if _handle is not None and _handle.serving_ops_cuda_add_variant(*launch, len(launch[-1])):
        raise MemoryError("serving_ops: no memory for a compiled kernel's key")


_why_missing = _load()
