from __future__ import annotations

import os
from importlib.util import find_spec

import pytest
import torch
from skips import pytest_make_collect_report as pytest_make_collect_report
from skips import pytest_runtest_makereport as pytest_runtest_makereport

if not torch.cuda.is_available() and find_spec("triton"):  # torch's CPU builds come without Triton
    # Triton asks when a kernel is defined whether to interpret it, so this must come before any test's own import.
    # Set for just that: other tests start engines, which must not inherit it.
    os.environ["TRITON_INTERPRET"] = "1"
    from serving_ops.kernels.triton import gated, norm, run_rope  # noqa: F401
    from serving_ops.kernels.triton.backward import run_backward  # noqa: F401

    del os.environ["TRITON_INTERPRET"]


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups next
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(_group(item)))
    items.sort(key=lambda item: [item.get_closest_marker(name) is None for name in ("engine", "slow")])


def _group(item: pytest.Item) -> str:
    """What runs in one worker: a file, whose fixtures are built once; SGLang's engines, which might pick one port."""
    file = item.path.relative_to(item.config.rootpath)
    return "sglang" if item.get_closest_marker("engine") and "sglang" in file.parts else str(file)


def _devices() -> list[object]:
    return ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=_devices())
def device(request: pytest.FixtureRequest) -> torch.device:
    """Every device that this package has kernels for."""
    return torch.device(request.param)
