"""What the kernels do not take gives the reference's result, is counted, and is explained."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from typing import Any

import pytest
import torch
from numerics import rows

import serving_ops
from serving_ops import cuda, plan, reference, support


def reference_calls(op: str) -> int:
    return sum(serving_ops.counters.snapshot()[op]["reference"].values())


def _as_tuple(results: Any) -> tuple[Any, ...]:
    return results if isinstance(results, tuple) else (results,)


@pytest.mark.parametrize("op", ["fused_add_rms_norm", "rms_norm", "rms_norm_gated"])
def test_float64_runs_on_the_reference_in_float64(device: torch.device, op: str) -> None:
    x, other = rows((3, 65), torch.float64, device, 1), rows((3, 65), torch.float64, device, 2)
    weight = rows((65,), torch.float64, device, 3)
    before = reference_calls(op)
    given = (x,) if op == "rms_norm" else (x, other)
    results, expected = (
        getattr(module, op)(*(tensor.clone() for tensor in given), weight) for module in (serving_ops, reference)
    )
    assert type(results) is type(expected)
    for result, want in zip(*map(_as_tuple, (results, expected)), strict=True):
        assert result.dtype == torch.float64
        assert torch.equal(result, want)
    assert reference_calls(op) == before + 1


def test_a_last_stride_of_two_is_counted_with_its_reason(device: torch.device) -> None:
    x = rows((3, 128), torch.bfloat16, device)[:, ::2]
    before = reference_calls("rms_norm")
    serving_ops.rms_norm(x, None)
    explanation = serving_ops.explain("rms_norm", x, None)
    assert explanation.path == "reference"
    assert explanation.reason is not None
    assert reference_calls("rms_norm") == before + 1
    assert explanation.reason in serving_ops.counters.snapshot()["rms_norm"]["reference"]


def test_what_the_kernels_take_is_explained_as_theirs(device: torch.device) -> None:
    if device.type == "cpu" and serving_ops.cpp_library() is None:
        pytest.skip("the C++ library is not built")
    x = rows((3, 128), torch.bfloat16, device)
    explanation = serving_ops.explain("fused_add_rms_norm", x, x.clone(), None)
    assert explanation.path == ("cpu" if device.type == "cpu" else "triton.tile")
    assert explanation.reason is None


def test_a_launch_from_python_is_counted_apart() -> None:
    before = serving_ops.counters.snapshot()["rms_norm"]
    serving_ops.rms_norm(torch.ones(2, 8), None)
    serving_ops.counters.count_kernel("rms_norm")
    after = serving_ops.counters.snapshot()["rms_norm"]
    from_cpp = 0 if serving_ops.cpp_library() is None else 1
    assert after["from_python"] == before["from_python"] + 1
    assert after["kernel"] == before["kernel"] + 1 + from_cpp


WITHOUT_THE_LIBRARY = """
import pathlib
_is_file = pathlib.Path.is_file
pathlib.Path.is_file = lambda self: not self.name.endswith(".so") and _is_file(self)
import torch, serving_ops
from serving_ops import extension
assert serving_ops.cpp_library() is None
x = torch.ones(2, 64)
serving_ops.fused_add_rms_norm(x, torch.ones(2, 64), None)
assert torch.allclose(x, torch.ones(2, 64))
(reason,) = serving_ops.counters.snapshot()["fused_add_rms_norm"]["reference"]
assert "not built" in reason, reason
try:
    serving_ops.fused_add_rms_norm(x, x, None)
except RuntimeError as error:
    assert "overlap" in str(error)
else:
    raise AssertionError("no error")
"""


def test_cpu_without_the_extension_runs_on_the_reference() -> None:
    subprocess.run([sys.executable, "-c", WITHOUT_THE_LIBRARY], check=True)


def test_what_no_cuda_grid_holds_goes_to_the_reference() -> None:
    """The route alone, which needs no device: no GPU here holds so many rows."""
    pytest.importorskip("triton", reason="needs Triton")
    many_rows = torch.empty(64, dtype=torch.bfloat16).expand(plan.MAX_ROWS + 1, 64)
    assert cuda.norm_route(many_rows, None) == support.TOO_MANY_ROWS
    assert cuda.gated_route(many_rows, None, None, None, many_rows, 64) == support.TOO_MANY_ROWS
    row = torch.empty(1, plan.MAX_GROUPS + 1, dtype=torch.bfloat16)
    assert cuda.gated_route(row, None, None, None, row, 1) == support.TOO_MANY_GROUPS
    assert not isinstance(cuda.gated_route(row[:, :-1], None, None, None, row[:, :-1], 1), str)


def test_an_error_has_a_text_for_cpp() -> None:
    assert support.text_of(RuntimeError("x.shape is ()")) == "x.shape is ()"
    assert support.text_of(ValueError("no such thing")) == "ValueError: no such thing"
    assert support.text_of(RuntimeError()) == "RuntimeError: "


def test_an_interrupt_on_the_way_through_cpp_is_not_lost() -> None:
    def interrupted() -> None:
        support.text_of(KeyboardInterrupt())
        time.sleep(10)

    # A shell that runs this suite in the background leaves SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            interrupted()
    finally:
        signal.signal(signal.SIGINT, before)
