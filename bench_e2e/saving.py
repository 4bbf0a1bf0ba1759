"""How a result gets into its file: in a compact form, whole or not at all, and somewhere else rather than nowhere."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

OBJECTS_BROKEN = 2  # levels: the result and its fields


def save(result: Mapping[str, Any], path: Path) -> Path:
    """Writes a result to `path`, or where that fails to a new temporary folder. Returns where it lies."""
    text = compact(result)
    try:
        return _write(text, path)
    except OSError:  # the disk is full, or the folder is gone since the start
        return _write(text, Path(tempfile.mkdtemp(prefix="serving-ops-result-")) / path.name)


def compact(result: Mapping[str, Any]) -> str:
    """JSON with a line for each field of the result, each case, and each variant or engine."""
    return _lines(result, 0) + "\n"


def _lines(value: Any, depth: int) -> str:
    """What holds nothing but plain values stays on one line, and so does an object below the first levels."""
    is_object = isinstance(value, Mapping)
    held = list(value.values()) if is_object else value if isinstance(value, (list, tuple)) else []
    holds_others = any(isinstance(entry, (Mapping, list, tuple)) for entry in held)
    if depth and (not holds_others or (is_object and depth >= OBJECTS_BROKEN)):
        return json.dumps(value)
    entries = [_lines(entry, depth + 1) for entry in held]
    if is_object:
        entries = [f"{json.dumps(key)}: {entry}" for key, entry in zip(value, entries, strict=True)]
    start, end = "{}" if is_object else "[]"
    return start + "\n" + ",\n".join(entries) + "\n" + end


def _write(text: str, path: Path) -> Path:
    if path.exists() and not path.is_file():  # a device such as /dev/null stays one
        path.write_text(text)
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path
