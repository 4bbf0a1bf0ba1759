"""Other projects' kernels, a file a project; what is not installed is left out, with the reason.

An adapter has `contestants() -> list[Contestant]`, which raises (ImportError as a rule) where it cannot work.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable

from serving_ops.bench_e2e.ops.contestants import Contestant
from serving_ops.bench_e2e.ops.results import first_line

ENGINES = {"cpu": ("vllm_cpu",), "cuda": ("vllm_cuda", "sgl")}
LIBRARIES = {"cpu": (), "cuda": ("flashinfer_norm", "quack_norm", "liger", "fla_gated")}


def adapters_for(device: str, *, libraries: bool) -> tuple[str, ...]:
    """The engines' own kernels, and with `libraries` those of the projects beside them."""
    return ENGINES[device] + (LIBRARIES[device] if libraries else ())


def load(adapters: Iterable[str]) -> tuple[list[Contestant], dict[str, str]]:
    """The contestants that could be loaded, and for each other adapter the reason why not."""
    found: list[Contestant] = []
    absent: dict[str, str] = {}
    for adapter in adapters:
        try:
            module = importlib.import_module(f"{__name__}.{adapter}")
            found += module.contestants()
        except Exception as error:  # an installation broken in any way is one contestant less
            absent[adapter] = first_line(error)
    return found, absent
