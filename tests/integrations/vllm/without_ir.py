"""vLLM as it will be without its IR, as far as serving_ops can tell: our modules cannot import `vllm.ir`.

vLLM's own modules still import it, and their norms run through it wherever ours leave them alone.
"""

from __future__ import annotations

import builtins
from collections.abc import Mapping, Sequence
from typing import Any

_import = builtins.__import__


def _import_or_not(
    name: str,
    globals: Mapping[str, Any] | None = None,
    locals: Mapping[str, Any] | None = None,
    fromlist: Sequence[str] | None = (),
    level: int = 0,
) -> Any:
    asks_for_ir = name.startswith("vllm.ir") or (name == "vllm" and "ir" in (fromlist or ()))
    if asks_for_ir and (globals or {}).get("__name__", "").startswith("serving_ops."):
        raise ImportError("cannot import name 'ir' from 'vllm'")
    return _import(name, globals, locals, fromlist, level)


def hide() -> None:
    """From now on, in this process. `restore` ends it."""
    builtins.__import__ = _import_or_not


def restore() -> None:
    builtins.__import__ = _import
