"""Every gradient kernel over shapes, dtypes and strides, in the interpreter or on the GPU, against float64."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from numerics import rms_error, rows
from torch import Tensor

import serving_ops
from serving_ops import support
from serving_ops.kernels.triton.backward import run_backward
from serving_ops.training import cuda_backward, plan_backward

EPS = 1e-6
DTYPES = [torch.float16, torch.bfloat16, torch.float32]
SIZES = (1, 64, 100, 128, 1000)
"""Several rows a program and one, lengths with and without a kernel's padding."""

ON_THE_GPU = (4096, 8192, 16383, 16384, 32767, 32768)
WIDE_SIZES = (9000, 9001, 17000, *(pytest.param(size, marks=pytest.mark.gpu) for size in ON_THE_GPU))
"""The other kernels; the interpreter takes seconds for each."""

RELATIVE = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-7, torch.float32: 2.0**-18}
"""Of gradients near 1, root mean square. Half a unit in the last place is 2^-12 and 2^-9 at most; Triton's interpreter
truncates to bf16, where the GPU rounds."""


def poisoned(like: Tensor) -> Tensor:
    return torch.full(like.shape, float("nan"), dtype=like.dtype, device=like.device)


def double(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.double()


def assert_close(gradient: Tensor | None, exact: Tensor, dtype: torch.dtype) -> None:
    assert gradient is not None
    assert gradient.dtype == dtype
    assert torch.isfinite(gradient).all()
    assert rms_error(gradient, exact) <= RELATIVE[dtype] * max(float(exact.square().mean().sqrt()), 1.0)


def norm_gradients(
    dout: Tensor,
    s: Tensor,
    weight: Tensor | None,
    more: Tensor | None = None,
    offset: float = 0.0,
    eps: float = EPS,
) -> tuple[Tensor, Tensor | None]:
    ds, dweight = poisoned(s), None if weight is None else poisoned(weight)
    assert cuda_backward.norm(dout, s, more, weight, eps, offset, ds, dweight) is None
    return ds, dweight


def exact_norm_gradients(
    dout: Tensor, s: Tensor, weight: Tensor | None, more: Tensor | None = None, offset: float = 0.0
) -> tuple[Tensor, Tensor]:
    tensors = (double(tensor) for tensor in (dout, s, weight))
    op = torch.ops.serving_ops.rms_norm_backward
    return op(*tensors, EPS, weight_offset=offset, ds_more=double(more))  # type: ignore[no-any-return]


def check_norm(dout: Tensor, s: Tensor, weight: Tensor | None, more: Tensor | None = None, offset: float = 0.0) -> None:
    ds, dweight = norm_gradients(dout, s, weight, more, offset)
    exact_ds, exact_dweight = exact_norm_gradients(dout, s, weight, more, offset)
    assert_close(ds, exact_ds, s.dtype)
    if weight is not None:
        assert_close(dweight, exact_dweight, weight.dtype)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_rows", [1, 5, 67])
def test_a_norms_gradients(kernel_device: torch.device, size: int, dtype: torch.dtype, num_rows: int) -> None:
    dout, s = (rows((num_rows, size), dtype, kernel_device, seed) for seed in (1, 2))
    check_norm(dout, s, rows((size,), dtype, kernel_device, 3))


@pytest.mark.parametrize("size", WIDE_SIZES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("has_more", [True, pytest.param(False, marks=pytest.mark.gpu)])
def test_a_wide_norms_gradients(kernel_device: torch.device, size: int, dtype: torch.dtype, has_more: bool) -> None:
    num_rows = 2 if kernel_device.type == "cpu" else 701
    dout, s, more = (rows((num_rows, size), dtype, kernel_device, seed) for seed in (1, 2, 3))
    check_norm(dout, s, rows((size,), dtype, kernel_device, 4), more if has_more else None)


@pytest.mark.parametrize("size", [100, 1024, *(pytest.param(size, marks=pytest.mark.gpu) for size in (9000, 32768))])
@pytest.mark.parametrize("weight_kind", ["none", "fp32", "gemma"])
@pytest.mark.parametrize("has_more", [True, False])
def test_what_a_norm_may_have_besides(kernel_device: torch.device, size: int, weight_kind: str, has_more: bool) -> None:
    dout, s, more = (rows((5, size), torch.bfloat16, kernel_device, seed) for seed in (1, 2, 3))
    weight = None if weight_kind == "none" else rows((size,), torch.bfloat16, kernel_device, 4)
    if weight is not None and weight_kind == "fp32":
        weight = weight.float()
    check_norm(dout, s, weight, more if has_more else None, 1.0 if weight_kind == "gemma" else 0.0)


@pytest.mark.parametrize("size", [128, 1000, pytest.param(9000, marks=pytest.mark.gpu)])
def test_strided_rows_and_a_gradient_that_all_rows_share(kernel_device: torch.device, size: int) -> None:
    s = rows((5, 3, 2 * size), torch.float16, kernel_device, 1)[:, :2, :size]
    weight = rows((size,), torch.float16, kernel_device, 2)
    check_norm(rows((1, 1, size), torch.float16, kernel_device, 3).expand(5, 2, size), s, weight)
    check_norm(rows((2, 5, size), torch.float16, kernel_device, 4).transpose(0, 1), s, weight)


def test_rows_of_zeros_have_finite_gradients(kernel_device: torch.device) -> None:
    s = torch.zeros(3, 128, dtype=torch.float16, device=kernel_device)
    weight = rows((128,), torch.float16, kernel_device)
    ds, dweight = norm_gradients(rows((3, 128), torch.float16, kernel_device) * 0.01, s, weight)
    assert torch.isfinite(ds).all()
    assert dweight is not None
    assert not dweight.any()


@pytest.mark.parametrize("num_rows", [5, 67])
def test_without_eps_a_program_that_is_not_full_sums_no_nan(kernel_device: torch.device, num_rows: int) -> None:
    x, z, dout = (rows((num_rows, 128), torch.float32, kernel_device, seed) for seed in (1, 2, 3))
    weight = rows((128,), torch.float32, kernel_device, 4)
    _, dweight = norm_gradients(dout, x, weight, eps=0.0)
    gradients = [poisoned(tensor) for tensor in (x, z, weight)]
    assert cuda_backward.gated(dout, x, z, weight, None, 0.0, True, "silu", 128, *gradients, None) is None
    assert all(torch.isfinite(gradient).all() for gradient in (dweight, *gradients) if gradient is not None)


def test_the_sum_of_parts_is_compiled_anew_for_each_dtype_it_ends_in() -> None:
    keys = {run_backward.sum_variant(torch.empty(8, dtype=dtype), pdl) for dtype in DTYPES for pdl in (False, True)}
    assert len(keys) == 2 * len(DTYPES)


@pytest.mark.gpu
def test_dtypes_that_follow_one_another_do_not_share_a_kernel() -> None:
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.bfloat16):
        dout, s = (rows((67, 128), dtype, "cuda", seed) for seed in (1, 2))
        check_norm(dout, s, rows((128,), dtype, "cuda", 3))


def test_a_nan_stays_in_its_row_and_reaches_the_weight(kernel_device: torch.device) -> None:
    dout, s = (rows((9, 256), torch.float32, kernel_device, seed) for seed in (1, 2))
    s[4, 7] = float("nan")
    ds, dweight = norm_gradients(dout, s, rows((256,), torch.float32, kernel_device, 3))
    assert torch.isnan(ds).all(dim=1).tolist() == [row == 4 for row in range(9)]
    assert dweight is not None
    assert torch.isnan(dweight).all()


@pytest.mark.gpu
@pytest.mark.parametrize("size", [128, 4096, 16384, 32768])
def test_the_same_bits_every_time(kernel_device: torch.device, size: int) -> None:
    dout, s = (rows((4099, size), torch.bfloat16, kernel_device, seed) for seed in (1, 2))
    weight = rows((size,), torch.bfloat16, kernel_device, 3)
    first, again = (norm_gradients(dout, s, weight) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("size", [128, 4096, 16384])
def test_dependent_launches_never_read_early(size: int) -> None:
    """Behind our own norms, which let the kernel after them in at their beginning, and read what those have written."""
    x, z = (rows((64, size), torch.bfloat16, "cuda", seed) for seed in (1, 2))
    weights = [rows((size,), torch.float32, "cuda", seed) + 1 for seed in range(3, 11)]
    s, dout, ds, dz = (torch.empty_like(x) for _ in range(4))
    dweight = torch.empty_like(weights[0])

    def chain(wait: Callable[[], None]) -> list[Tensor]:
        found = []
        for weight in weights:
            serving_ops.rms_norm(x, weight, EPS, out=s)
            serving_ops.rms_norm(z, weight, EPS, out=dout)
            wait()
            assert cuda_backward.norm(dout, s, None, weight, EPS, 0.0, ds, dweight) is None
            found += [ds.clone(), dweight.clone()]
            serving_ops.rms_norm(z, weight, EPS, out=s)
            wait()
            if size <= plan_backward.GATED_MAX_N:
                order = (dout, s, z, weight, None, EPS, True, "silu", size, ds, dz, dweight, None)
                assert cuda_backward.gated(*order) is None
                found += [ds.clone(), dz.clone(), dweight.clone()]
        return found

    want = chain(torch.cuda.synchronize)
    for _ in range(20):
        assert all(map(torch.equal, chain(lambda: None), want))


@pytest.mark.gpu
def test_more_than_2_31_elements() -> None:
    dout, s = (torch.randn(2**17 + 3, 16384, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    weight = torch.randn(16384, dtype=torch.bfloat16, device="cuda")
    ds, dweight = norm_gradients(dout, s, weight)
    exact_ds, _ = exact_norm_gradients(dout[-3:], s[-3:], weight)
    assert_close(ds[-3:], exact_ds, torch.bfloat16)
    assert dweight is not None
    summed = torch.zeros(16384, dtype=torch.float64, device="cuda")
    for few in range(0, len(s), 8192):
        part = s[few : few + 8192].double()
        summed += (dout[few : few + 8192] * part * torch.rsqrt(part.square().mean(1, keepdim=True) + EPS)).sum(0)
    assert_close(dweight, summed, torch.bfloat16)


GATED = {
    "norm before gate": {},
    "gate before norm": {"norm_before_gate": False},
    "sigmoid": {"activation": "sigmoid"},
    "gate before norm, sigmoid, groups": {"norm_before_gate": False, "activation": "sigmoid", "groups": 4},
    "groups": {"groups": 2},
    "no gate": {"gated": False},
    "no gate before norm": {"gated": False, "norm_before_gate": False},
    "bias": {"bias": True},
    "bias, gate before norm": {"bias": True, "norm_before_gate": False},
    "no weight": {"weighted": False},
}


def check_gated(x: Tensor, z: Tensor | None, weight: Tensor | None, bias: Tensor | None, **options: Any) -> None:
    tensors = (rows(tuple(x.shape), x.dtype, x.device, 9), x, z, weight, bias)
    gradients = tuple(None if tensor is None else poisoned(tensor) for tensor in tensors[1:])
    order, activation = options.get("norm_before_gate", True), options.get("activation", "silu")
    group_size = x.shape[-1] // options.get("groups", 1)
    reason = cuda_backward.gated(*tensors, EPS, order, activation, group_size, *gradients)  # type: ignore[arg-type]
    assert reason is None
    dout, wide_x, wide_z, wide_weight, wide_bias = map(double, tensors)
    exact = torch.ops.serving_ops.rms_norm_gated_backward(
        *(dout, wide_x, wide_z, wide_weight, EPS),
        bias=wide_bias,
        norm_before_gate=order,
        activation=activation,
        group_size=group_size,
    )
    for tensor, gradient, truth in zip(tensors[1:], gradients, exact, strict=True):
        if tensor is not None:
            assert_close(gradient, truth, tensor.dtype)


@pytest.mark.parametrize("name", GATED)
@pytest.mark.parametrize("size", [128, 200, pytest.param(4096, marks=pytest.mark.gpu)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_gated_norms_gradients(kernel_device: torch.device, name: str, size: int, dtype: torch.dtype) -> None:
    options = dict(GATED[name])
    x, z = (rows((7, size), dtype, kernel_device, seed) for seed in (1, 2))
    weight, bias = (rows((size,), torch.float32, kernel_device, seed) for seed in (3, 4))
    gate = z if options.pop("gated", True) else None
    weights = weight if options.pop("weighted", True) else None
    check_gated(x, gate, weights, bias if options.pop("bias", False) else None, **options)


@pytest.mark.parametrize("num_rows", [33, 700, 2100], ids=str)
def test_gated_heads_in_every_size_of_tile(kernel_device: torch.device, num_rows: int) -> None:
    x, z = (rows((num_rows, 128), torch.bfloat16, kernel_device, seed) for seed in (1, 2))
    check_gated(x, z, rows((128,), torch.float32, kernel_device, 3), None)


def test_a_gated_rows_groups_count_towards_the_size_of_its_tile(
    kernel_device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []
    plan = plan_backward.plan_gated_backward
    monkeypatch.setattr(plan_backward, "plan_gated_backward", lambda *sizes: asked.append(sizes) or plan(*sizes))
    x, z = (rows((3, 512), torch.bfloat16, kernel_device, seed) for seed in (1, 2))
    check_gated(x, z, rows((512,), torch.float32, kernel_device, 3), None, groups=4)
    assert set(asked) == {(128, 12)}


def test_a_gate_in_a_wider_buffer(kernel_device: torch.device) -> None:
    x = rows((3, 5, 64), torch.float16, kernel_device, 1)
    z = rows((3, 800), torch.float16, kernel_device, 2)[:, 160:480].view(3, 5, 64)
    check_gated(x, z, rows((64,), torch.float16, kernel_device, 3), None)


def test_a_group_too_wide_for_registers_is_left_to_the_formula(kernel_device: torch.device) -> None:
    x = rows((2, 16384), torch.float16, kernel_device)
    ds = poisoned(x)
    reason = cuda_backward.gated(x, x, None, None, None, EPS, True, "silu", 16384, ds, None, None, None)
    assert reason == "a gated group too wide for registers"
    assert torch.isnan(ds).all()


@pytest.mark.parametrize("size", [128, 4096, 16384, 32768])
def test_no_more_programs_than_run_at_once(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    asked: list[tuple[Any, ...]] = []
    launches = SimpleNamespace(run_norm_backward=lambda *arguments: asked.append(arguments))
    monkeypatch.setattr(cuda_backward, "_module", lambda: launches)
    monkeypatch.setattr(cuda_backward, "_num_sms", lambda device: 132)
    row = torch.zeros(size, dtype=torch.bfloat16)
    rows_of_one = row.expand(2**20, size)  # one row's memory
    assert cuda_backward.norm(rows_of_one, rows_of_one, None, row, EPS, 0.0, rows_of_one, row) is None
    chosen, num_programs = asked[0][9:11]
    assert num_programs == 132 * chosen.programs_per_sm


def test_rows_whose_weight_has_a_gradient_beyond_registers_are_left_to_the_formula() -> None:
    x = torch.empty(1, plan_backward.MAX_N + 1, dtype=torch.float16, device="meta")
    assert cuda_backward.norm(x, x, None, None, EPS, 0.0, x, None) == support.TOO_WIDE
