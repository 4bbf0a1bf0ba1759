"""Where there is no GPU, the kernels run in Triton's interpreter, on CPU tensors.

Triton asks the environment when a kernel is defined and again when it runs. The variable is set for just that: other
tests of this process start engines, which must not inherit it.
"""

from __future__ import annotations

import os
import pytest
import torch

INTERPRETED = not torch.cuda.is_available()

if INTERPRETED:
    os.environ["TRITON_INTERPRET"] = "1"
    from serving_ops.kernels.triton import gated, norm  # noqa: F401

    del os.environ["TRITON_INTERPRET"]


@pytest.fixture(autouse=True)
def interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    if INTERPRETED:
        monkeypatch.setenv("TRITON_INTERPRET", "1")


@pytest.fixture
def kernel_device() -> torch.device:
    """The GPU, or the CPU under the interpreter."""
    return torch.device("cpu" if INTERPRETED else "cuda")
