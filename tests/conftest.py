from __future__ import annotations

import os

import pytest
import torch
from skips import pytest_make_collect_report as pytest_make_collect_report
from skips import pytest_runtest_makereport as pytest_runtest_makereport

if not torch.cuda.is_available():
    # Triton asks when a kernel is defined whether to interpret it, so this must come before any test's own import.
    # Set for just that: other tests start engines, which must not inherit it.
    os.environ["TRITON_INTERPRET"] = "1"
    from serving_ops.kernels.triton import backward, gated, norm  # noqa: F401

    del os.environ["TRITON_INTERPRET"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def _devices() -> list[object]:
    return ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=_devices())
def device(request: pytest.FixtureRequest) -> torch.device:
    """Every device that this package has kernels for."""
    return torch.device(request.param)
