"""Other projects' kernels; what is not installed is left out, with the reason.

An adapter is a function of a module here that returns contestants, and raises (ImportError as a rule) where it cannot.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from serving_ops.bench_e2e import environment
from serving_ops.bench_e2e.ops.cases import Case
from serving_ops.bench_e2e.ops.contestants import Call, Contestant, Norm, Unsupported, differentiated
from serving_ops.bench_e2e.ops.inputs import Inputs

ENGINES = {
    "cpu": {"vLLM": "vllm_c.contestants"},
    "cuda": {"vLLM": "vllm_c.contestants", "sgl": "libraries.sgl"},
}
LIBRARIES = {
    "FlashInfer": "flashinfer_norm.contestants",
    **{"Quack": "libraries.quack", "Liger": "libraries.liger", "FLA": "libraries.fla"},
}
WITH_GRADIENTS = {name: f"{LIBRARIES[name]}_trained" for name in ("Quack", "Liger", "FLA")}
REASON_CHARACTERS = 160  # of an error's first line


def adapters_for(bench: str, device: str, *, libraries: bool) -> dict[str, str]:
    """Project -> adapter: the engines' own, and with `libraries` those beside them on CUDA; all that train do there."""
    if bench == "training":
        return WITH_GRADIENTS if device == "cuda" else {}
    return ENGINES[device] | (LIBRARIES if libraries and device == "cuda" else {})


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


def offered(calls: dict[str, Callable[[Inputs], Call]]) -> Callable[[Case, Inputs], Call]:
    """Binds the call of each op that a project offers without gradients."""

    def bind(case: Case, inputs: Inputs) -> Call:
        if case.op not in calls:
            raise Unsupported(f"no {case.op}")
        return calls[case.op](inputs)

    return bind


def trained(norms: dict[str, Norm], *, overwrites_dout: bool = False) -> Callable[[Case, Inputs], Call]:
    """Binds the function of the leaves of each op that a project offers with gradients."""

    def bind(case: Case, inputs: Inputs) -> Call:
        if case.op not in norms:
            raise Unsupported(f"no {case.op}")
        return differentiated(norms[case.op], case, inputs, overwrites_dout=overwrites_dout)

    return bind


def load_library(candidates: Sequence[str]) -> None:
    """Registers the operators of the first that exists, a path relative to a folder of sys.path.

    Raises OSError, and ImportError that names what was looked for.
    """
    paths = (Path(folder or ".") / candidate for candidate in candidates for folder in sys.path)
    found = next((path for path in paths if path.is_file()), None)
    if found is None:
        raise ImportError(f"no {' or '.join(candidates)} on sys.path")
    torch.ops.load_library(str(found))


def version(*distributions: str) -> str:
    """Of the first that is installed; "unknown" for a library carried without its package."""
    return next(filter(None, map(environment.version_of, distributions)), "unknown")
