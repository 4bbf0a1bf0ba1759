"""Where there is no GPU, the kernels run in Triton's interpreter, on CPU tensors."""

from __future__ import annotations

import pytest
import torch

INTERPRETED = not torch.cuda.is_available()


@pytest.fixture(autouse=True)
def interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    if INTERPRETED:
        monkeypatch.setenv("TRITON_INTERPRET", "1")


@pytest.fixture
def kernel_device() -> torch.device:
    """The GPU, or the CPU under the interpreter."""
    return torch.device("cpu" if INTERPRETED else "cuda")
