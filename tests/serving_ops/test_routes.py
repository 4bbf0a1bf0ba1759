"""One place decides what runs a call: the call itself, `explain` and the counters ask it."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from numerics import rows
from op_calls import OPS, make, specs

import serving_ops
from serving_ops import counters
from serving_ops.ops import registry
from serving_ops.ops.description import NormOp

CPU = torch.device("cpu")


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_a_call_gives_the_reason_that_explain_gives(op: NormOp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "route_of", lambda *_: "no kernel on Sundays")
    monkeypatch.setattr(counters, "_reference_calls", Counter())
    call = make(next(iter(specs(op, torch.float64))), CPU)  # which C++ hands to Python
    assert serving_ops.explain(op.name, **call).reason == "no kernel on Sundays"
    op.function(**call)
    assert counters.snapshot()[op.part_of or op.name]["reference"] == {"no kernel on Sundays": 1}


def test_a_call_that_cpp_takes_is_computed_where_python_is_asked_to_run_it() -> None:
    x, out = rows((3, 64), torch.float32, CPU, 1), torch.full((3, 64), torch.nan)
    before = counters.snapshot()["rms_norm"]["kernel"]
    torch.ops.serving_ops._rms_norm_fallback(x, None, 1e-6, 0.0, out)
    torch.testing.assert_close(out, serving_ops.reference.rms_norm(x, None))
    assert counters.snapshot()["rms_norm"]["kernel"] == before
