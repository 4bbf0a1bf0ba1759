"""The library that the operators are defined in, by `serving_ops.ops.registry`, `serving_ops.training` and plugins.

The `_..._fallback` operators serve the C++ kernels: what those do not take goes there, and the text that comes
back is empty, or the message of an error (exceptions cross LibTorch's stable ABI only from torch 2.13 on).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from serving_ops import checks, support

library = torch.library.Library("serving_ops", "DEF")

TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)


def define(schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Define an operator that runs the same function on every device where C++ has none."""
    name = schema.partition("(")[0]
    library.define(schema, tags=TAGS)
    library.impl(name, run, "CompositeExplicitAutograd")
    if "!" in schema:
        library.impl(name, _without_negation(schema), "Negative")
    torch.library.register_fake(f"serving_ops::{name}", fake, lib=library)


def _without_negation(schema: str) -> Callable[..., Any]:
    """What runs a call with a view that is negated when it is read. PyTorch would write one such back after the call,
    and fails there, because these operators return nothing."""
    parsed = torch._C.parse_schema(f"serving_ops::{schema}")

    def run(*args: Any, **kwargs: Any) -> Any:
        call = dict(zip((argument.name for argument in parsed.arguments), args, strict=False)) | kwargs
        for argument in parsed.arguments:
            value = call.get(argument.name)
            if isinstance(value, Tensor) and value.is_neg():
                if argument.is_write:
                    checks.written(argument.name, value)
                call[argument.name] = value.resolve_neg()
        name = parsed.name.partition("::")[2]
        return getattr(getattr(torch.ops.serving_ops, name), parsed.overload_name or "default")(**call)

    return run


def define_fallback(name: str, arguments: str, run: Callable[..., Any]) -> None:
    """Define the operator that C++ calls where it does not take a call of `name`. `run` gets all arguments in order."""

    def run_or_say(*args: Any) -> str:
        try:
            run(*args)
        except BaseException as error:  # Triton's own and an interrupt included: none crosses into C++
            return support.text_of(error)
        return ""

    library.define(f"_{name}_fallback({arguments}) -> str")
    library.impl(f"_{name}_fallback", run_or_say, "CompositeExplicitAutograd")
