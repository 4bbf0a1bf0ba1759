"""How vLLM runs a model's graph. Its modes are known by their names, whatever their numbers are."""

from __future__ import annotations

from typing import Any


def is_eager(compilation: Any) -> bool:
    """Return whether a configuration whose defaults are set compiles nothing."""
    return _name(compilation) == "NONE"


def is_in_pieces(compilation: Any) -> bool:
    """Return whether vLLM splits the graph, runs its passes over the pieces and compiles them."""
    return _name(compilation) == "VLLM_COMPILE"


def _name(compilation: Any) -> str | None:
    return getattr(compilation.mode, "name", None)
