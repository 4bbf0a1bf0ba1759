"""Other projects' kernels; what is not installed is left out, with the reason.

An adapter is a function of a module here that returns contestants, and raises (ImportError as a rule) where it cannot.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from serving_ops.bench_e2e import environment
from serving_ops.bench_e2e.ops.contestants import Contestant

ENGINES = {"vLLM": "vllm_c.contestants", "sgl": "libraries.sgl"}
LIBRARIES = {name: f"libraries.{name.lower()}" for name in ("FlashInfer", "Quack", "Liger", "FLA")}
REASON_CHARACTERS = 160  # of an error's first line


def adapters_for(bench: str, device: str, *, libraries: bool) -> dict[str, str]:
    """Project -> adapter: the engines' own; with `libraries`, and with gradients, those beside them."""
    on_cuda = device == "cuda"
    engines = ENGINES if on_cuda else {"vLLM": ENGINES["vLLM"]}
    return (engines if bench == "ops" else {}) | (LIBRARIES if on_cuda and (libraries or bench == "training") else {})


def load(adapters: Mapping[str, str]) -> tuple[list[Contestant], dict[str, str]]:
    """The contestants that could be loaded, and for each other project the reason why not."""
    found: list[Contestant] = []
    absent: dict[str, str] = {}
    for project, adapter in adapters.items():
        module, _, name = adapter.partition(".")
        try:
            found += getattr(importlib.import_module(f"{__name__}.{module}"), name)()
        except Exception as error:  # an installation broken in any way is one contestant less
            absent[project] = first_line(error)
    return found, absent


def first_line(error: BaseException) -> str:
    """An error as a cell of a table takes it."""
    text = str(error).strip().split("\n")[0] or "no message"
    return f"{type(error).__name__}: {text}"[:REASON_CHARACTERS]


def load_library(candidates: Sequence[str]) -> None:
    """Registers the operators of the first that exists, a path relative to a folder of sys.path.

    Raises OSError, and ImportError that names what was looked for.
    """
    found = [path for name in candidates for folder in sys.path if (path := Path(folder or ".", name)).is_file()]
    if not found:
        raise ImportError(f"no {' or '.join(candidates)} on sys.path")
    torch.ops.load_library(str(found[0]))


def version(*distributions: str) -> str:
    """Of the first that is installed; "unknown" for a library carried without its package."""
    return next(filter(None, map(environment.version_of, distributions)), "unknown")
