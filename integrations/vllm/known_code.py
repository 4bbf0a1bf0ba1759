"""Which of vLLM's classes and methods are those that our code stands in for.

A method is known by the names that its code uses, and by those of its parameters. One that we do not know is a step, or
an argument, that ours lacks.
"""

from __future__ import annotations

from typing import Any

from serving_ops.integrations.common.code_names import names_in, parameters_in
from serving_ops.integrations.vllm import installed


def is_one_of(known: dict[str, str], part: Any) -> bool:
    """Return whether a part of a model is of one of these classes, and no subclass. known: name -> module."""
    return known.get(type(part).__name__) == type(part).__module__


def why_lacking(part: Any, *names: str) -> str | None:
    """Return which of these attributes a part of a model lacks, or None. Code of ours asks for them at each call."""
    missing = [name for name in names if not hasattr(part, name)]
    return f"{type(part).__name__} has no {', '.join(missing)}" if missing else None


def names_of(method: Any) -> set[str]:
    """Return the names that a method uses, without our wrapper around it."""
    return names_in(installed.original(method).__code__)


def parameters_of(method: Any) -> set[str]:
    """Return the names of a method's parameters, without our wrapper around it."""
    return parameters_in(installed.original(method).__code__)
