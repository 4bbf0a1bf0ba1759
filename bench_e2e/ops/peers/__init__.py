"""Other projects' kernels, a file a project; what is not installed is left out, with the reason.

An adapter has `contestants() -> list[Contestant]`, which raises (ImportError as a rule) where it cannot work, and
`with_gradients()` of the same kind where its project differentiates norms.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from functools import partial

from serving_ops.bench_e2e.ops.case_result import first_line
from serving_ops.bench_e2e.ops.cases import FORWARD, Case
from serving_ops.bench_e2e.ops.contestants import Call, Contestant, Norm, Unsupported, differentiated
from serving_ops.bench_e2e.ops.inputs import Inputs

ENGINES = {"cpu": ("vllm_c",), "cuda": ("vllm_c", "sgl")}
LIBRARIES = {"cpu": (), "cuda": ("flashinfer_norm", "quack_norm", "liger", "fla_gated")}
WITH_GRADIENTS = {"cpu": (), "cuda": ("quack_norm", "liger", "fla_gated")}


def adapters_for(bench: str, device: str, *, libraries: bool) -> tuple[str, ...]:
    """The engines' own kernels, and with `libraries` those of the projects beside them, all of which are trained."""
    if bench == "training":
        return WITH_GRADIENTS[device]
    return ENGINES[device] + (LIBRARIES[device] if libraries else ())


def load(bench: str, adapters: Iterable[str]) -> tuple[list[Contestant], dict[str, str]]:
    """The contestants that could be loaded, and for each other adapter the reason why not."""
    found: list[Contestant] = []
    absent: dict[str, str] = {}
    for adapter in adapters:
        try:
            module = importlib.import_module(f"{__name__}.{adapter}")
            found += module.with_gradients() if bench == "training" else module.contestants()
        except Exception as error:  # an installation broken in any way is one contestant less
            absent[adapter] = first_line(error)
    return found, absent


def trained(functions: dict[str, Norm], *, overwrites_dout: bool = False) -> Callable[[Case, Inputs], Call]:
    """Binds a function of the leaves for each op that a project offers with gradients."""
    return partial(_bind, functions, overwrites_dout)


def _bind(functions: dict[str, Norm], overwrites_dout: bool, case: Case, inputs: Inputs) -> Call:
    if case.op not in functions or case.passes == FORWARD:
        raise Unsupported(f"no {case.op}")
    return differentiated(functions[case.op], case, inputs, overwrites_dout=overwrites_dout)
