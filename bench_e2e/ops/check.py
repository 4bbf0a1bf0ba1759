"""Is a contestant right? Compared with float64 on random data, before anything of it is timed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from serving_ops import reference
from serving_ops.bench_e2e.ops import rope_cases
from serving_ops.bench_e2e.ops.cases import FORWARD, FUSED_ADD, Case
from serving_ops.bench_e2e.ops.contestants import FORMULAS, Call, formula, with_eps
from serving_ops.bench_e2e.ops.inputs import EPS, Inputs, redraw

# Largest ||row - exact|| / ||exact|| that passes. Two roundings to bf16 give about 3e-3, to fp16 4e-4, and
# fp32 under 1e-6: loose on purpose, peers may round where we do not; a wrong formula is over 5e-2.
MAX_ROW_ERROR = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-5}
# FP8 has 3 bits of fraction: every kernel loses about 2.6e-2 of a row's norm, and a fixed limit above it would hide
# errors of the norm. The limit is what the reference's pair loses on the same rows, times this: a kernel that does not
# round to x's dtype before it quantizes, or multiplies by a reciprocal, rounds a few values of a row the other way.
QUANT_SLACK = 1.05
TOKENS_COMPARED = 256  # evenly spread, the first and the last included
# Largest ||gradient - exact|| / ||exact|| that passes, over some rows or over the weight. Eager rounds the product with
# the weight, the normed row and their product to bf16: 5e-3; a wrong formula is over 5e-2.
MAX_GRADIENT_ERROR = {torch.bfloat16: 2e-2, torch.float16: 4e-3, torch.float32: 1e-4}
CHUNK_ELEMENTS = 1 << 24  # of rows in float64 at a time: 128 MiB a tensor, a dozen of them


def checker(case: Case, inputs: Inputs) -> Callable[[Call], str | None]:
    """Runs a call; None if its results are right, else what is wrong with them."""
    return partial(problem, case, inputs) if case.passes == FORWARD else Gradients(case, inputs).problem


def problem(case: Case, inputs: Inputs, call: Call) -> str | None:
    """Runs the call once on new data; None if its results are right, else what is wrong with them."""
    redraw(inputs)
    tokens = _sample(inputs.x.shape[0]).to(inputs.x.device)
    expected = _expected(case, inputs, tokens)
    for (name, want, limit), got in zip(expected, _results(case, inputs, call()), strict=False):
        dtype = torch.float32 if case.fmt and name == "result" else inputs.x.dtype
        if got.shape != (inputs.x.shape[0], *want.shape[1:]) or got.dtype != dtype:
            return f"wrong: {name} is {tuple(got.shape)} {got.dtype}"
        if not torch.isfinite(got).all():
            return f"wrong: {name} has values that are not finite"
        error = _row_error(got[tokens], want)
        if error > limit:
            return f"wrong: {name} is off by {error:.1e} of its norm"
    return None


def _sample(num_tokens: int) -> Tensor:
    return torch.linspace(0, num_tokens - 1, min(num_tokens, TOKENS_COMPARED), dtype=torch.float64).round().long()


def _expected(case: Case, inputs: Inputs, tokens: Tensor) -> list[tuple[str, Tensor, float]]:
    """Name, value in float64 and largest row error of each result, for some tokens."""
    limit = MAX_ROW_ERROR[case.torch_dtype]
    if inputs.call:
        return [("result", rope_cases.exact(inputs.call, tokens), limit)]
    rows, weight = [tensor[tokens] for tensor in inputs.rows], inputs.weight
    offset = {"weight_offset": case.weight_offset} if case.weight_offset else {}
    norm: Any = FORMULAS[FUSED_ADD if case.fmt else case.op]
    exact = norm(*(row.double() for row in rows), None if weight is None else weight.double(), EPS, **offset)
    exact = exact if isinstance(exact, tuple) else (exact,)
    limits = [limit] * len(exact)
    if case.fmt is not None:
        quantized: Any = formula(case)(*rows, weight, EPS)
        limits[0] = QUANT_SLACK * _row_error(reference.dequantize(*quantized[:2], case.fmt), exact[0])
    return list(zip(("result", "residual"), exact, limits, strict=False))


def _results(case: Case, inputs: Inputs, returned: Any) -> tuple[Tensor, ...]:
    """What the call returned, or what it wrote if it returned nothing; a quantized result as it stands for, in fp32."""
    if inputs.call:
        return (rope_cases.results(inputs.call, returned),)
    if case.fmt is not None:
        q, scales, residual = (inputs.out, inputs.scales, inputs.residual) if returned is None else returned
        return reference.dequantize(q, scales, case.fmt) if q.dtype == case.fmt.dtype else q, residual
    if returned is None:
        returned = (inputs.x, inputs.residual) if case.op == FUSED_ADD else inputs.out
    results = returned if isinstance(returned, (tuple, list)) else (returned,)
    return tuple(tensor.view(inputs.x.shape) for tensor in results if isinstance(tensor, Tensor))[:2]


def _row_error(got: Tensor, exact: Tensor) -> float:
    difference = torch.linalg.vector_norm(got.double() - exact, dim=-1)
    norm = torch.linalg.vector_norm(exact, dim=-1).clamp_min(torch.finfo(torch.float64).tiny)
    return float((difference / norm).max())


class Gradients:
    """The gradients of all rows that share the weight, and those of some rows, in float64."""

    def __init__(self, case: Case, inputs: Inputs) -> None:
        *rows, weight = (tensor.detach().flatten(0, -2) if tensor.dim() > 1 else tensor for tensor in inputs.leaves)
        douts = [dout.flatten(0, -2) for dout in inputs.douts]
        self.case, self.tokens = case, _sample(case.rows).to(weight.device)
        *self.rows, _ = _gradients(case, [t[self.tokens] for t in rows], weight, [t[self.tokens] for t in douts])
        self.weight = torch.zeros_like(weight, dtype=torch.float64)
        size = max(1, CHUNK_ELEMENTS // case.size)
        for first in range(0, case.rows, size):
            taken = slice(first, first + size)
            self.weight += _gradients(case, [t[taken] for t in rows], weight, [t[taken] for t in douts])[-1]

    def problem(self, call: Call) -> str | None:
        gradients: Any = call()
        *of_rows, of_weight = gradients
        compared = [("dweight", of_weight, self.weight)]
        compared += [
            ("dx", got.flatten(0, -2)[self.tokens], want) for got, want in zip(of_rows, self.rows, strict=True)
        ]
        for name, got, want in compared:
            error = float(torch.linalg.vector_norm(got.double() - want) / torch.linalg.vector_norm(want))
            if not error <= MAX_GRADIENT_ERROR[self.case.torch_dtype]:  # NaN is wrong, too
                return f"wrong: {name} is off by {error:.1e} of its norm"
        return None


def _gradients(case: Case, rows: Sequence[Tensor], weight: Tensor, douts: Sequence[Tensor]) -> tuple[Tensor, ...]:
    leaves = [tensor.detach().double().requires_grad_() for tensor in (*rows, weight)]
    results: Any = with_eps(formula(case))(*leaves)
    return torch.autograd.grad(results, leaves, [dout.double() for dout in douts])
