"""Is a contestant right? Compared with float64 on fresh random data, before anything of it is timed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from serving_ops.bench_e2e.ops.cases import FUSED_ADD, Case
from serving_ops.bench_e2e.ops.contestants import FORMULAS, Call
from serving_ops.bench_e2e.ops.inputs import Inputs, redraw

# Largest ||row - exact|| / ||exact|| that passes. Two roundings to bf16 give about 3e-3, to fp16 4e-4, and
# fp32 under 1e-6: loose on purpose, peers may round where we do not; a wrong formula is over 5e-2.
MAX_ROW_ERROR = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-5}
TOKENS_COMPARED = 256  # evenly spread, the first and the last included


def problem(case: Case, inputs: Inputs, call: Call) -> str | None:
    """Runs the call once on new data; None if its results are right, else what is wrong with them."""
    redraw(inputs)
    tokens = _sample(inputs.x.shape[0]).to(inputs.x.device)
    exact = _exact(case, inputs, tokens)
    returned = call()
    for name, got, want in zip(("result", "residual"), _results(case, inputs, returned), exact, strict=False):
        if got.shape != inputs.x.shape or got.dtype != inputs.x.dtype:
            return f"wrong: {name} is {tuple(got.shape)} {got.dtype}"
        if not torch.isfinite(got).all():
            return f"wrong: {name} has values that are not finite"
        error = _row_error(got[tokens], want)
        if error > MAX_ROW_ERROR[case.torch_dtype]:
            return f"wrong: {name} is off by {error:.1e} of its norm"
    return None


def _sample(num_tokens: int) -> Tensor:
    return torch.linspace(0, num_tokens - 1, min(num_tokens, TOKENS_COMPARED), dtype=torch.float64).round().long()


def _exact(case: Case, inputs: Inputs, tokens: Tensor) -> tuple[Tensor, ...]:
    *rows, weight, eps = inputs.arguments
    wide = [tensor[tokens].double() for tensor in rows]
    offset = {"weight_offset": case.weight_offset} if case.weight_offset else {}
    exact: Any = FORMULAS[case.op](*wide, None if weight is None else weight.double(), eps, **offset)
    return exact if isinstance(exact, tuple) else (exact,)


def _results(case: Case, inputs: Inputs, returned: object) -> tuple[Tensor, ...]:
    """What the call returned, or what it wrote if it returned nothing."""
    shape = inputs.x.shape
    if isinstance(returned, (tuple, list)):
        return tuple(t.view(shape) for t in returned if isinstance(t, Tensor))[:2]
    if isinstance(returned, Tensor):
        return (returned.view(shape),)
    if case.op == FUSED_ADD:
        assert inputs.residual is not None
        return inputs.x, inputs.residual
    assert inputs.out is not None
    return (inputs.out,)


def _row_error(got: Tensor, exact: Tensor) -> float:
    difference = torch.linalg.vector_norm(got.double() - exact, dim=-1)
    norm = torch.linalg.vector_norm(exact, dim=-1).clamp_min(torch.finfo(torch.float64).tiny)
    return float((difference / norm).max())
