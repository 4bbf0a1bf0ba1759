"""Where there is no GPU, the kernels run in Triton's interpreter, on CPU tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import triton.language as tl

INTERPRETED = not torch.cuda.is_available()


@pytest.fixture(autouse=True)
def interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    if INTERPRETED:
        monkeypatch.setenv("TRITON_INTERPRET", "1")


@pytest.fixture
def kernel_device() -> torch.device:
    """The GPU, or the CPU under the interpreter."""
    return torch.device("cpu" if INTERPRETED else "cuda")


@pytest.fixture
def gpu_conversions(kernel_device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's interpreter truncates to bf16 and loses carries in FP8; here it rounds as the GPU does."""
    if kernel_device.type != "cpu":
        return
    from triton.runtime import interpreter

    def converted(data: np.ndarray[Any, Any], dtype: Any) -> np.ndarray[Any, Any]:
        values = torch.from_numpy(np.ascontiguousarray(data))
        if dtype == tl.bfloat16:
            return values.to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
        return values.clamp(-448, 448).to(torch.float8_e4m3fn).view(torch.uint8).numpy()

    for method in ("cast_impl", "create_fp_to_fp"):
        original = getattr(interpreter.InterpreterBuilder, method)

        def cast(self: Any, src: Any, dst_type: Any, *rest: Any, original: Any = original) -> Any:
            if src.dtype.scalar == tl.float32 and dst_type.scalar in (tl.bfloat16, tl.float8e4nv):
                return interpreter.TensorHandle(converted(src.data, dst_type.scalar), dst_type.scalar)
            return original(self, src, dst_type, *rest)

        monkeypatch.setattr(interpreter.InterpreterBuilder, method, cast)
    for alias in ("create_fp_trunc", "create_fp_ext"):
        monkeypatch.setattr(interpreter.InterpreterBuilder, alias, interpreter.InterpreterBuilder.cast_impl)
