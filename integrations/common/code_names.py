"""The names that an engine's method uses: they tell whether it does more than our code that stands in for it."""

from __future__ import annotations

from types import CodeType


def names_in(code: CodeType) -> set[str]:
    """Return the names that code uses, with those of the functions inside it."""
    inside = (constant for constant in code.co_consts if isinstance(constant, CodeType))
    return set(code.co_names).union(*map(names_in, inside))


def parameters_in(code: CodeType) -> set[str]:
    """Return the names of a function's parameters, but not that of `**kwargs`."""
    return set(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount])
