"""What the quantized ops share: their results, and the call of an operator that may write them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from serving_ops import checks, modes
from serving_ops.ops.description import Call, Format, Layout, Result, Rows, Scalar
from serving_ops.quant_format import QuantFormat


def _quantized(call: Call) -> Layout:
    return Layout(tuple(call["x"].shape), call["fmt"].dtype)


def _scales(call: Call) -> Layout:
    return Layout(*call["fmt"].scales(tuple(call["x"].shape)))


FORMAT = Format("fmt", scale="scale")
SCALE = Scalar("scale", given="has_scale")
NORMED = Rows("normed", optional=True, read=False, written=True, may_be=("x",), given="has_normed")
RESULTS = (Result("out", _quantized), Result("scales_out", _scales))


def call(
    operator: Any,
    instead: str,
    x: Tensor,
    fmt: QuantFormat,
    scale: Tensor | None,
    out: Tensor | None,
    scales_out: Tensor | None,
    written: tuple[Tensor | None, ...],
    **arguments: Any,
) -> tuple[Tensor, Tensor]:
    """Run an operator; returns what is quantized, and its scales. Where only one of the results is given, both are.

    instead: what differentiates. written: arguments that are written.
    """
    tensors = {name: value for name, value in arguments.items() if isinstance(value, Tensor)}
    if not modes.only_computed(x, scale, out, scales_out, *tensors.values()):
        checks.not_differentiated(instead, x=x, scale=scale, out=out, scales_out=scales_out, **tensors)
    arguments |= {"x": x, "scale": scale, **fmt.fields()}
    if out is None and scales_out is None:
        out, scales_out = operator.default(**arguments)
    else:
        checks.rows("x", x)
        given = {"x": x, "fmt": fmt}
        out = RESULTS[0].empty(given) if out is None else out
        scales_out = RESULTS[1].empty(given) if scales_out is None else scales_out
        operator.out(**arguments, out=out, scales_out=scales_out)
        written += (out, scales_out)
    modes.increment_version(tuple(tensor for tensor in written if tensor is not None))
    return out, scales_out if scale is None else scale
