"""How a result gets into its file: whole or not at all, and somewhere else rather than nowhere."""

from __future__ import annotations

import tempfile
from pathlib import Path


def save(text: str, path: Path) -> Path:
    """Writes `text` to `path`, or where that fails to a new temporary folder. Returns where it lies."""
    try:
        return _write(text, path)
    except OSError:  # the disk is full, or the folder is gone since the start
        return _write(text, Path(tempfile.mkdtemp(prefix="serving-ops-result-")) / path.name)


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
