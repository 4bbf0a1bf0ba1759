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
from serving_ops.bench_e2e.ops.inputs import Inputs, redraw

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
    exact = _exact(case, inputs, tokens)
    limits = _limits(case, inputs, tokens, exact)
    returned = call()
    results = _results(case, inputs, returned)
    for name, got, want, limit in zip(("result", "residual"), results, exact, limits, strict=False):
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


def _exact(case: Case, inputs: Inputs, tokens: Tensor) -> tuple[Tensor, ...]:
    if inputs.call:
        return (rope_cases.exact(inputs.call, tokens),)
    *rows, weight, eps = inputs.arguments
    wide = [tensor[tokens].double() for tensor in rows]
    offset = {"weight_offset": case.weight_offset} if case.weight_offset else {}
    op = FUSED_ADD if case.fmt else case.op
    exact: Any = FORMULAS[op](*wide, None if weight is None else weight.double(), eps, **offset)
    return exact if isinstance(exact, tuple) else (exact,)


def _limits(case: Case, inputs: Inputs, tokens: Tensor, exact: tuple[Tensor, ...]) -> tuple[float, ...]:
    """Of the row error of each result."""
    plain = MAX_ROW_ERROR[case.torch_dtype]
    if case.fmt is None:
        return (plain,) * len(exact)
    *rows, weight, eps = inputs.arguments
    quantized: Any = formula(case)(*(tensor[tokens] for tensor in rows), weight, eps)
    q, scales, _ = quantized
    return QUANT_SLACK * _row_error(reference.dequantize(q, scales, case.fmt), exact[0]), plain


def _results(case: Case, inputs: Inputs, returned: object) -> tuple[Tensor, ...]:
    """What the call returned, or what it wrote if it returned nothing."""
    shape = inputs.x.shape
    if inputs.call:
        return (rope_cases.results(inputs.call, returned),)
    if case.fmt is not None:
        return _dequantized(case, inputs, returned)
    if isinstance(returned, (tuple, list)):
        return tuple(t.view(shape) for t in returned if isinstance(t, Tensor))[:2]
    if isinstance(returned, Tensor):
        return (returned.view(shape),)
    if case.op == FUSED_ADD:
        assert inputs.residual is not None
        return inputs.x, inputs.residual
    assert inputs.out is not None
    return (inputs.out,)


def _dequantized(case: Case, inputs: Inputs, returned: Any) -> tuple[Tensor, Tensor]:
    """What the quantized result stands for, in fp32, and the residual; a result of another dtype as it is."""
    assert case.fmt is not None
    q, scales, residual = (inputs.out, inputs.scales, inputs.residual) if returned is None else returned
    return reference.dequantize(q, scales, case.fmt) if q.dtype == case.fmt.dtype else q, residual


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
