"""Finding another project's compiled library without importing its package, and its version."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import torch


def load_library(candidates: Sequence[str]) -> None:
    """Registers the operators of the first candidate found. Raises ImportError or OSError."""
    torch.ops.load_library(str(library(candidates)))


def library(candidates: Sequence[str]) -> Path:
    """The first of the candidates, paths relative to a folder of sys.path, that exists.

    Raises ImportError, naming what was looked for.
    """
    for candidate in candidates:
        for folder in sys.path:
            path = Path(folder or ".") / candidate
            if path.is_file():
                return path
    raise ImportError(f"no {' or '.join(candidates)} on sys.path")


def version(*distributions: str) -> str:
    """Of the first that is installed; "unknown" for a library carried without its package."""
    for distribution in distributions:
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return "unknown"
