"""The kernel of `qk_norm_rope` against the reference, in every form of rotation and cache and with every plan."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import triton.language as tl
from numerics import assert_no_less_accurate, rows
from op_calls import by_formula, copied, exact, launched, make, rotations, values
from torch import Tensor

from serving_ops import NormSpec, RopeSpec, cuda_rope, plan, reference, rope_reference
from serving_ops.kernels.triton import rope
from serving_ops.kernels.triton.norm import run_norm
from serving_ops.kernels.triton.variant import unspecialized
from serving_ops.layout import row_grid
from serving_ops.ops import registry

pytestmark = pytest.mark.usefixtures("gpu_conversions")

OP = registry.find("qk_norm_rope")
BF16, FP8 = torch.bfloat16, torch.float8_e4m3fn
PLAIN = NormSpec("qk_norm_rope", 64, BF16, BF16, torch.device("cpu"), heads=5, rotation=RopeSpec(num_kv_heads=2))
ROTATIONS = [PLAIN.rotation, *(replace(rotation, num_kv_heads=2) for rotation in rotations(PLAIN))]


@pytest.fixture(autouse=True)
def fp8(monkeypatch: pytest.MonkeyPatch, kernel_device: torch.device) -> None:
    if kernel_device.type == "cpu":
        monkeypatch.setattr(cuda_rope, "converts_to_fp8", lambda device: True)


def with_heads(monkeypatch: pytest.MonkeyPatch, heads: int) -> None:
    """Have every launch take so many heads a program."""
    monkeypatch.setattr(cuda_rope, "plan_rope", lambda *_, **__: plan.Plan("heads", 0, heads, 1))


def run(call: dict[str, Any]) -> dict[str, Tensor]:
    """What the kernel wrote, by name; it has to take the call."""
    call = copied(call)
    assert launched(OP, call) is None
    return {name: call[name] for name in OP.may_be if call[name] is not None}


def check(call: dict[str, Any]) -> None:
    truth, expected, got = exact(OP, call), values(OP, call, by_formula(OP, call)), values(OP, call, run(call))
    for name, want in truth.items():
        assert_no_less_accurate(got[name], expected[name], want)


@pytest.mark.parametrize("block_size", [1, 2, 3, 16, 528, 784, 65535, 65537, 2**31 - 1])
def test_a_slot_is_found_in_its_block_without_a_division(kernel_device: torch.device, block_size: int) -> None:
    @unspecialized
    def slot_start_kernel(out_ptr, slots_ptr, block_size: tl.int32, block_stride: tl.int64, slot_stride: tl.int64):
        slot = tl.load(slots_ptr + tl.program_id(0))
        start = rope._slot_start(slot, (block_size, block_stride, slot_stride), rope._reciprocal(block_size))
        tl.store(out_ptr + tl.program_id(0), start)

    most = 2**31 - 1
    near = [number * block_size + step for number in (0, 1, 2, 7, most // block_size) for step in (-1, 0, 1)]
    slots = [slot for slot in (*near, most - 1, most) if 0 <= slot <= most]
    out = torch.zeros(len(slots), dtype=torch.int64, device=kernel_device)
    given = torch.tensor(slots, device=kernel_device)
    slot_start_kernel[(len(slots),)](out, given, block_size, 2**31, 1)
    assert out.tolist() == [slot // block_size * 2**31 + slot % block_size for slot in slots]


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("rotation", ROTATIONS, ids=str)
def test_every_rotation_and_cache_is_as_accurate_as_the_reference(
    kernel_device: torch.device, monkeypatch: pytest.MonkeyPatch, rotation: RopeSpec, heads: int
) -> None:
    with_heads(monkeypatch, heads)
    check(make(replace(PLAIN, rotation=rotation), kernel_device, num_tokens=3))


@pytest.mark.parametrize("size", [64, 80, 96, 100, 128, 256])
@pytest.mark.parametrize("dtype", [BF16, torch.float16, torch.float32], ids=str)
def test_heads_of_every_size_and_dtype(kernel_device: torch.device, size: int, dtype: torch.dtype) -> None:
    for weight_dtype in (dtype, torch.float32, None):
        spec = replace(PLAIN, size=size, dtype=dtype, weight_dtype=weight_dtype, weight_offset=1.0)
        check(make(spec, kernel_device, num_tokens=3))


def test_the_bits_are_those_of_rms_norm_and_a_rotation(kernel_device: torch.device) -> None:
    call = make(PLAIN, kernel_device, num_tokens=3)
    normed = copied(call)
    for x, name in zip(heads_of(normed), ("q_weight", "k_weight"), strict=False):
        grid = row_grid(x, x, x)
        assert grid is not None
        run_norm(x, None, call[name], x, 1e-6, 0.0, grid, plan.plan_norm(64, 2, grid.num_rows), False)
    expected = by_formula(OP, normed | {"q_weight": None, "k_weight": None})
    assert torch.equal(run(call)["qkv"], expected["qkv"])


def heads_of(call: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor | None]:
    return rope_reference.heads_of(call["qkv"], None, None, 5, 2, 64)


@pytest.mark.parametrize("rotation", [ROTATIONS[0], ROTATIONS[2], ROTATIONS[9]], ids=str)
def test_a_tokens_bits_do_not_depend_on_the_plan_or_on_where_it_lies(
    kernel_device: torch.device, monkeypatch: pytest.MonkeyPatch, rotation: RopeSpec
) -> None:
    call = make(replace(PLAIN, rotation=rotation), kernel_device, num_tokens=3)
    with_heads(monkeypatch, 4)
    expected = run(call)
    with_heads(monkeypatch, 1)
    qkv = torch.zeros(3, call["qkv"].shape[1] + 3, dtype=BF16, device=kernel_device)[:, 3:].copy_(call["qkv"])
    for name, got in run(call | {"qkv": qkv}).items():
        assert torch.equal(got, expected[name])


@pytest.mark.parametrize("block_size", [2, None])
@pytest.mark.parametrize("padding", [-1, -(2**32)])
def test_padding_is_not_cached(kernel_device: torch.device, block_size: int | None, padding: int) -> None:
    """Neither tokens with a negative slot nor those beyond the last slot."""
    rotation = RopeSpec(num_kv_heads=2, has_cache=True, block_size=block_size)
    call = make(replace(PLAIN, rotation=rotation), kernel_device, num_tokens=5)
    call["slot_mapping"] = torch.tensor([4, padding, 1], device=kernel_device)
    got, expected = run(call), by_formula(OP, call)
    for name in ("key_cache", "value_cache"):
        untouched = torch.tensor([0, 2, 3], device=kernel_device)
        slots = call[name].flatten(0, -3)[untouched]
        assert torch.equal(got[name].flatten(0, -3)[untouched], slots)
        torch.testing.assert_close(got[name], expected[name], rtol=2**-7, atol=2**-7)


def test_caches_whose_blocks_take_turns(kernel_device: torch.device) -> None:
    rotation = RopeSpec(num_kv_heads=2, has_cache=True, block_size=2)
    call = make(replace(PLAIN, rotation=rotation), kernel_device, num_tokens=5)
    both = torch.zeros(3, 2, 2, 2, 64, dtype=BF16, device=kernel_device)
    expected = run(call | {name: torch.zeros_like(call[name]) for name in ("key_cache", "value_cache")})
    call |= {"key_cache": both[:, 0], "value_cache": both[:, 1]}
    assert launched(OP, call) is None
    assert torch.equal(both[:, 0], expected["key_cache"])
    assert torch.equal(both[:, 1], expected["value_cache"])


def test_fp8_caches_have_the_bits_of_a_correct_division(kernel_device: torch.device) -> None:
    rotation = RopeSpec(num_kv_heads=2, has_cache=True, cache_dtype=FP8, block_size=None)
    call = make(replace(PLAIN, rotation=rotation), kernel_device, num_tokens=5)
    scales = {name: rows((1,), torch.float32, kernel_device, 1).abs() / 100 for name in ("k_scale", "v_scale")}
    got = run(call | scales)
    _, k, v = rope_reference.heads_of(got["qkv"], None, None, 5, 2, 64)
    assert v is not None
    for name, heads, scale in zip(("key_cache", "value_cache"), (k, v), scales.values(), strict=True):
        want = (heads.float() / scale).clamp(-448, 448).to(FP8)
        assert torch.equal(got[name].view(torch.uint8), want.view(torch.uint8))


def test_what_the_kernel_does_not_take_is_said(kernel_device: torch.device) -> None:
    def reason(**changes: Any) -> str | None:
        spec = replace(PLAIN, rotation=replace(PLAIN.rotation, has_cache=True))
        return launched(OP, make(spec, kernel_device, num_tokens=3) | changes)

    wide = make(replace(PLAIN, size=1024), kernel_device, num_tokens=3)
    assert launched(OP, wide) == cuda_rope.TOO_LARGE
    assert reason(k_weight=torch.ones(64, device=kernel_device)) == cuda_rope.TWO_WEIGHT_DTYPES
    assert reason(cos_sin_cache=torch.ones(5, 0, device=kernel_device)) == cuda_rope.NOTHING_ROTATED
    apart = torch.zeros(1, 16, 4, 64, dtype=BF16, device=kernel_device)[:, :, :2]
    assert reason(value_cache=apart) == cuda_rope.TWO_LAYOUTS
    assert reason(slot_mapping=torch.arange(6, device=kernel_device)[::2]) == cuda_rope.SLOTS_APART
    assert reason(qkv=torch.zeros(3, 9 * 128, dtype=BF16, device=kernel_device)[:, ::2]) == "qkv.stride(-1) is not 1"


def test_the_reference_rotates_what_it_norms() -> None:
    """The formula that this file compares with is itself a norm, then a rotation by hand."""
    call = make(replace(PLAIN, size=4, rotation=RopeSpec(num_kv_heads=1)), torch.device("cpu"), num_tokens=1)
    q, _, _ = rope_reference.heads_of(call["qkv"].clone(), None, None, 5, 1, 4)
    y = reference.rms_norm(q, call["q_weight"])[0, 0].float()
    cos, sin = call["cos_sin_cache"][0].float().split(2)
    want = torch.stack((y[0] * cos[0] - y[2] * sin[0], y[2] * cos[0] + y[0] * sin[0]))
    rotated = by_formula(OP, call)["qkv"][0, [0, 2]]
    assert torch.equal(rotated, want.to(BF16))
