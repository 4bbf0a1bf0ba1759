"""Is a contestant right? Compared with float64 on random data, before anything of it is timed."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from serving_ops import reference
from serving_ops.bench_e2e.ops.cases import FORWARD, QK_ROPE, Case
from serving_ops.bench_e2e.ops.contestants import Call, eager, formula
from serving_ops.bench_e2e.ops.inputs import EPS, Inputs, redraw
from serving_ops.ops import registry
from serving_ops.ops.description import is_written

# Largest ||row - exact|| / ||exact|| that passes. Two roundings to bf16 give about 3e-3, to fp16 4e-4, and
# fp32 under 1e-6: loose on purpose, peers may round where we do not; a wrong formula is over 5e-2.
MAX_ROW_ERROR = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-5}
# FP8 has 3 bits of fraction: every kernel loses about 2.6e-2 of a row's norm, and a fixed limit above it would hide
# errors of the norm. The limit is what the reference's pair loses on the same rows, times this: a kernel that does not
# round to x's dtype before it quantizes, or multiplies by a reciprocal, rounds a few values of a row the other way.
QUANT_SLACK = 1.05
# The same of a gradient, over some rows or over the weight. Eager rounds the product with the weight, the normed row
# and their product to bf16: 5e-3.
MAX_GRADIENT_ERROR = {torch.bfloat16: 2e-2, torch.float16: 4e-3, torch.float32: 1e-4}
TOKENS_COMPARED = 256  # evenly spread, the first and the last included
CHUNK_ELEMENTS = 1 << 24  # of rows in float64 at a time: 128 MiB a tensor, a dozen of them

Expected = tuple[str, Tensor, torch.dtype, float]  # name, value in float64 for some tokens, dtype, largest error


def problem(case: Case, inputs: Inputs, call: Call) -> str | None:
    """Runs the call once, on new data where it has no gradients; None if its results are right, else what is wrong."""
    trained = case.passes != FORWARD
    if not trained:
        redraw(inputs)
    num_tokens, device = case.shape[0], registry.find(case.op).subject(inputs.call).device
    places = torch.linspace(0, num_tokens - 1, min(num_tokens, TOKENS_COMPARED), dtype=torch.float64)
    tokens = places.round().long().to(device)
    expected = list((_exact_gradients if trained else _exact_results)(case, inputs, tokens))
    returned: Any = call()
    results = returned if trained else _results(case, inputs, returned).values()
    for (name, want, dtype, limit), got in zip(expected, results, strict=False):
        shape = want.shape if name == "dweight" else (num_tokens, *want.shape[1:])
        if got.shape != shape or got.dtype != dtype:
            return f"wrong: {name} is {tuple(got.shape)} {got.dtype}"
        if not torch.isfinite(got).all():
            return f"wrong: {name} has values that are not finite"
        error = _error(got if name == "dweight" else got[tokens], want)
        if error > limit:
            return f"wrong: {name} is off by {error:.1e} of its norm"
    return None


def _exact_results(case: Case, inputs: Inputs, tokens: Tensor) -> Iterator[Expected]:
    """The formula's in float64. A quantized result is compared with that of the same op without quantization."""
    plain, wide = replace(case, op=case.op.removesuffix("_quant"), form=None), inputs.at(tokens, torch.float64)
    exact = _results(plain, wide, eager.bind(plain, wide)())
    for name, value in exact.items():
        dtype, limit = case.torch_dtype, MAX_ROW_ERROR[case.torch_dtype]
        if case.fmt is not None and name == "result":
            some = inputs.at(tokens)
            quantized = _results(case, some, eager.bind(case, some)())["result"]
            dtype, limit = quantized.dtype, QUANT_SLACK * _error(quantized, value)
        yield name, value, dtype, limit


def _exact_gradients(case: Case, inputs: Inputs, tokens: Tensor) -> Iterator[Expected]:
    """Of the rows for some tokens, and of the weight, which all rows share."""
    *rows, weight = (operand.detach() for operand in inputs.operands)

    def of(taken: Any) -> tuple[Tensor, ...]:
        leaves = [tensor.double().requires_grad_() for tensor in (*(row[taken] for row in rows), weight)]
        return torch.autograd.grad(formula(case)(*leaves, EPS), leaves, [dout[taken].double() for dout in inputs.douts])

    limit, step = MAX_GRADIENT_ERROR[case.torch_dtype], max(1, CHUNK_ELEMENTS // rows[0][0].numel())
    yield from (("dx", gradient, case.torch_dtype, limit) for gradient in of(tokens)[:-1])
    chunks = (slice(first, first + step) for first in range(0, len(rows[0]), step))
    yield "dweight", sum(of(chunk)[-1] for chunk in chunks), weight.dtype, limit


def _results(case: Case, inputs: Inputs, returned: Any) -> dict[str, Tensor]:
    """What a call made and wrote, each as (tokens, heads, elements); a quantized result as it stands for, in fp32."""
    op, call = registry.find(case.op), inputs.call
    names = [result.name for result in op.results]
    names += [a.name for a in op.arguments if is_written(a) and call[a.name] is not None]
    made = (returned,) if isinstance(returned, Tensor) else tuple(returned or ())
    if case.op == QK_ROPE and made:  # q and k apart; v stays where it was
        rotated = torch.cat([x.flatten(1) for x in made], dim=1)
        made = (torch.cat((rotated, call["qkv"][:, rotated.shape[1] :]), dim=1),)
    values = dict(zip(names, (*made, *(call[name] for name in names[len(made) :])), strict=True))
    if "scales_out" in values and values["out"].dtype == case.fmt.dtype:  # type: ignore[union-attr]
        values["out"] = reference.dequantize(values["out"], values["scales_out"], case.fmt)  # type: ignore[arg-type]
    values.pop("scales_out", None)
    for name in values.keys() & {"key_cache", "value_cache"}:
        values[name] = values[name].flatten(0, 1)[call["slot_mapping"]]
    rows = {name: tensor.view(len(op.subject(call)), -1, case.size) for name, tensor in values.items()}
    return {"result" if name == names[0] else name: tensor for name, tensor in rows.items()}


def _error(got: Tensor, exact: Tensor) -> float:
    """Over a row's norm, of the row that is farthest off."""
    difference = torch.linalg.vector_norm(got.double() - exact, dim=-1)
    norm = torch.linalg.vector_norm(exact, dim=-1).clamp_min(torch.finfo(torch.float64).tiny)
    return float((difference / norm).max())
