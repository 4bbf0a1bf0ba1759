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


FORMAT = Format("fmt")
SCALE = Scalar("scale")
NORMED = Rows("normed", read=False, written=True, may_be=("x",), given="has_normed")
RESULTS = (Result("out", _quantized), Result("scales_out", _scales))


def call(
    operator: Any,
    arguments: tuple[Any, ...],
    fmt: QuantFormat,
    scale: Tensor | None,
    normed: Tensor | None,
    out: Tensor | None,
    scales_out: Tensor | None,
    options: dict[str, Any],
    written: tuple[Tensor, ...] = (),
) -> tuple[Tensor, Tensor]:
    """Run an operator; returns what is quantized, and its scales: `out` and `scales_out` where they are given.

    arguments: by position, from x to eps. written: those of them that are written. options: more, by name; each costs
    0.4 us of host time, so none that has its default needs to be there. Raises TypeError where fmt is no format.
    """
    try:
        text = fmt.text
    except AttributeError:
        raise TypeError(f"serving_ops: fmt is {fmt!r}: it must be a serving_ops.QuantFormat") from None
    if scale is not None:
        options["scale"] = scale
    if normed is not None:
        options["normed"] = normed
        written += (normed,)
    if out is None and scales_out is None:
        out, scales_out = operator.default(*arguments, text, **options)
    else:
        if out is None or scales_out is None:
            checks.rows("x", arguments[0])
            given = {"x": arguments[0], "fmt": fmt}
            out = RESULTS[0].empty(given) if out is None else out
            scales_out = RESULTS[1].empty(given) if scales_out is None else scales_out
        operator.out(*arguments, text, out, scales_out, **options)
        written += (out, scales_out)
    if written:
        modes.increment_version(written)
    return out, scales_out if scale is None else scale
