"""`cuda_quant.norm_quant_unchecked`: launches are kept by layout, and repeated at other addresses alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor

from serving_ops import QuantFormat, cuda_quant
from serving_ops.kernels.triton import launch, norm_quant

FMT = QuantFormat()


class Launches:
    """Stands for the kernel: what was launched anew, and what was repeated with which addresses."""

    def __init__(self) -> None:
        self.anew: list[tuple[Any, ...]] = []
        self.repeated: list[tuple[int, ...]] = []

    def run(self, *args: Any) -> Any:
        self.anew.append(args)
        return self.repeat

    def repeat(self, addresses: Iterable[int]) -> None:
        self.repeated.append(tuple(addresses))


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Launches:
    """A device that is pretended: CPU tensors say that they are on device -1, which is the current one."""
    found = Launches()
    monkeypatch.setattr(norm_quant, "run_norm_quant", found.run)
    monkeypatch.setattr(cuda_quant, "_repeats", {})
    monkeypatch.setattr(cuda_quant, "converts_to_fp8", lambda device: True)
    monkeypatch.setattr(cuda_quant, "pdl", lambda device: True)
    monkeypatch.setattr(torch.cuda, "_DeviceGuard", lambda index: contextlib.nullcontext())
    monkeypatch.setattr(torch._C, "_cuda_getDevice", lambda: -1, raising=False)
    return found


def tensors(num_tokens: int = 4, size: int = 256, *, columns: bool = False) -> dict[str, Tensor]:
    x = torch.randn(num_tokens, size).bfloat16()
    groups = size // FMT.group_size
    scales = torch.empty(groups, num_tokens).t() if columns else torch.empty(num_tokens, groups)
    out = torch.empty(x.shape, dtype=FMT.dtype)
    return {"x": x, "residual": x.clone(), "weight": torch.ones(size).bfloat16(), "out": out, "scales": scales}


def call(given: dict[str, Tensor | None], eps: float = 1e-6) -> None:
    assert cuda_quant.norm_quant_unchecked(**given, eps=eps, fmt=FMT) is None  # type: ignore[arg-type]


def test_tensors_that_lie_alike_repeat_the_launch_at_their_own_addresses(launches: Launches) -> None:
    call(tensors())
    second = tensors()
    call(second)
    assert len(launches.anew) == 1
    x = second["x"].data_ptr()
    others = (second[name].data_ptr() for name in ("residual", "weight"))
    assert launches.repeated == [(x, *others, x, second["out"].data_ptr(), second["scales"].data_ptr())]


@pytest.mark.parametrize(
    "change",
    [
        lambda given: tensors(5),
        lambda given: tensors(4, 512),
        lambda given: tensors(columns=True),
        lambda given: given | {"residual": None},
        lambda given: given | {"weight": torch.ones(256)},
        lambda given: given | {"x": torch.randn(4, 512).bfloat16()[:, :256]},
        lambda given: given | {"residual": torch.randn(4 * 256 + 1).bfloat16()[1:].view(4, 256)},
    ],
    ids=["tokens", "size", "scales", "no residual", "weight", "stride", "alignment"],
)
def test_another_layout_is_another_launch(launches: Launches, change: Any) -> None:
    given = tensors()
    call(given)
    call(change(given))
    assert len(launches.anew) == 2
    assert launches.repeated == []


def test_another_eps_and_another_current_device_launch_anew(
    launches: Launches, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = tensors()
    call(given)
    call(given, eps=1e-5)
    monkeypatch.setattr(torch._C, "_cuda_getDevice", lambda: 1)
    call(given)
    assert len(launches.anew) == 3
    assert launches.repeated == []


def test_what_no_kernel_takes_is_said_and_not_launched(launches: Launches) -> None:
    given = tensors()
    reason = cuda_quant.norm_quant_unchecked(**given | {"x": given["x"].double()}, eps=1e-6, fmt=FMT)  # type: ignore[arg-type]
    assert reason == "x.dtype torch.float64"
    assert launches.anew == []


def test_layouts_are_forgotten_before_they_pile_up(launches: Launches, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_quant, "MOST_REPEATS", 2)
    for num_tokens in (1, 2, 3):
        call(tensors(num_tokens))
    assert len(cuda_quant._repeats) == 1


def test_a_repeat_runs_the_compiled_kernel_with_the_first_launchs_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[Any, ...]] = []

    class Compiled:
        function, packed_metadata = "function", "packed"

        @staticmethod
        def run(*args: Any) -> None:
            ran.append(args)

    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda index: f"stream {index}", raising=False)
    launch._launch(Compiled(), (3, 1, 1), 0, [10, 20], (1e-6, 256))
    assert ran == [(3, 1, 1, "stream 0", "function", "packed", None, None, None, 10, 20, 1e-6, 256)]
