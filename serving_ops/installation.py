"""A warning where the package was installed without its C++ library, on a system that the library is built for."""

from __future__ import annotations

import logging
import sys

from serving_ops import extension

REMEDY = (
    "install serving_ops again beside torch and a C++ compiler, with `SERVING_OPS_BUILD=required pip install .`, "
    "which shows what goes wrong in the build"
)


def warn_without_library() -> None:
    """Log one warning, with what to do, where the library is missing."""
    missing = extension.why_missing()
    if missing is None or sys.platform != "linux":
        return
    logging.getLogger("serving_ops").warning(
        "serving_ops runs without its C++ library: %s. The PyTorch reference serves CPU tensors, and Python launches "
        "the CUDA kernels, at several times the host time. To have the library, %s.",
        *(missing, REMEDY),
    )
