"""A vLLM without one of its modules, as far as serving_ops can tell: our modules cannot import it.

vLLM's own modules still do.
"""

from __future__ import annotations

import builtins
from collections.abc import Mapping, Sequence
from typing import Any

_import = builtins.__import__


def _without(module: str) -> Any:
    package, _, last = module.rpartition(".")

    def import_or_not(
        name: str,
        globals: Mapping[str, Any] | None = None,
        locals: Mapping[str, Any] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> Any:
        asks = name == module or name.startswith(f"{module}.") or (name == package and last in (fromlist or ()))
        if asks and (globals or {}).get("__name__", "").startswith("serving_ops."):
            raise ModuleNotFoundError(f"No module named '{module}'", name=module)
        return _import(name, globals, locals, fromlist, level)

    return import_or_not


def hide(module: str) -> None:
    """From now on, in this process. `restore` ends it."""
    builtins.__import__ = _without(module)


def restore() -> None:
    builtins.__import__ = _import
