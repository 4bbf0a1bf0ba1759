"""`cuda_rope.repeat`: calls that differ in addresses alone are launched again without checks, but for overlaps."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from op_calls import copied, launched, make
from torch import Tensor

from serving_ops import NormSpec, RopeSpec, cuda_rope
from serving_ops.kernels.triton import run_rope
from serving_ops.ops import registry

OP = registry.find("qk_norm_rope")
PLAIN = NormSpec("qk_norm_rope", 64, torch.bfloat16, torch.bfloat16, torch.device("cpu"), heads=4, rotation=RopeSpec(2))
OF_LAYER = ("qkv", "positions", "cos_sin_cache", "q_weight", "k_weight")
"""The tensors of `cuda_rope.of_layer`, in order."""

CACHED = dataclasses.replace(PLAIN, rotation=RopeSpec(2, has_cache=True, block_size=4))


class Launches:
    """Stands for the kernel: with which tensors it was launched anew, and with which addresses again."""

    def __init__(self) -> None:
        self.anew: list[tuple[Any, ...]] = []
        self.again: list[list[int]] = []

    def run(self, *args: Any) -> Any:
        self.anew.append(args)
        return self.repeat

    def repeat(self, addresses: Iterable[int]) -> None:
        self.again.append(list(addresses))


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Launches:
    """A device that is pretended: CPU tensors say that they are on device -1, which is the current one."""
    found = Launches()
    monkeypatch.setattr(run_rope, "run_qk_norm_rope", found.run)
    monkeypatch.setattr(cuda_rope, "_known", {})
    monkeypatch.setattr(cuda_rope, "pdl", lambda device: True)
    monkeypatch.setattr(torch.cuda, "_DeviceGuard", lambda index: contextlib.nullcontext())
    monkeypatch.setattr(torch._C, "_cuda_getDevice", lambda: -1, raising=False)
    return found


def call_of(spec: NormSpec = PLAIN, tokens: int = 5) -> dict[str, Any]:
    return make(spec, torch.device("cpu"), tokens)


def test_a_call_that_differs_in_addresses_is_launched_at_its_own(launches: Launches) -> None:
    call = call_of(CACHED)
    assert not cuda_rope.repeat(call)
    assert launched(OP, call) is None
    other = copied(call)
    assert cuda_rope.repeat(other)
    assert len(launches.anew) == 1
    qkv, positions = other["qkv"].data_ptr(), other["positions"].data_ptr()
    heads = [qkv, qkv + 4 * 64 * 2, qkv + 6 * 64 * 2]
    names = "cos_sin_cache", "q_weight", "k_weight", "key_cache", "value_cache", "slot_mapping"
    assert launches.again == [[*heads, positions, *(other[name].data_ptr() for name in names), qkv, qkv]]


def test_the_addresses_are_those_of_the_first_launch(launches: Launches) -> None:
    """`_pointers` and the kernel's launcher agree about the order."""
    for spec in (PLAIN, CACHED, dataclasses.replace(PLAIN, rotation=RopeSpec(2, separate=True))):
        call = call_of(spec)
        launched(OP, call)
        assert cuda_rope.repeat(call)
        q, k, v, positions, table, *weights = launches.anew[-1][:7]
        given = [q, k, q if v is None else v, positions, table, *weights]
        assert launches.again[-1][:7] == [tensor.data_ptr() for tensor in given]


CHANGES: list[dict[str, Any]] = [
    {"eps": 1e-5},
    {"is_neox": False},
    {"mrope_section": (16, 8, 8)},
    {"positions": torch.arange(5, dtype=torch.int32)},
    {"cos_sin_cache": torch.ones(7, 64)},
    {"qkv": torch.zeros(5, 1024, dtype=torch.bfloat16)[:, :512]},
    {"qkv": torch.zeros(5 * 512 + 1, dtype=torch.bfloat16)[1:].view(5, 512)},
    {"num_q_heads": 6, "num_kv_heads": 1},
    {"q_weight": None, "k_weight": None},
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: " ".join(change))
def test_what_differs_in_more_is_checked(launches: Launches, change: dict[str, Any]) -> None:
    call = call_of()
    launched(OP, call)
    assert not cuda_rope.repeat(call | change)


def test_a_call_on_a_device_that_is_not_current_is_checked(launches: Launches, monkeypatch: pytest.MonkeyPatch) -> None:
    call = call_of()
    launched(OP, call)
    monkeypatch.setattr(torch._C, "_cuda_getDevice", lambda: 1)
    assert not cuda_rope.repeat(call)


def test_a_call_whose_tensors_overlap_is_checked(launches: Launches) -> None:
    call = call_of()
    launched(OP, call)
    memory = torch.zeros(call["qkv"].numel() + 64, dtype=torch.bfloat16)
    over = {"qkv": memory[: call["qkv"].numel()].view(5, 512), "k_weight": memory[-96:-32]}
    assert over["k_weight"].data_ptr() % 16 == call["k_weight"].data_ptr() % 16
    assert not cuda_rope.repeat(call | over)


def test_caches_that_lie_in_turns_are_known_by_their_distance(launches: Launches) -> None:
    """One buffer of both for each layer. Two buffers in which they lie otherwise are compared again."""

    def in_turns(other: Tensor | None = None) -> dict[str, Any]:
        both = torch.zeros(2, 2, 4, 2, 64, dtype=torch.bfloat16)
        return call_of(CACHED) | {"key_cache": both[:, 0], "value_cache": both[:, 1]}

    first = in_turns()
    launched(OP, first)
    assert cuda_rope.repeat(in_turns())
    buffer = torch.zeros(4096, dtype=torch.bfloat16)
    keys, values = (buffer[start:].as_strided((2, 4, 2, 64), (1024, 128, 64, 1)) for start in (0, 256))
    assert not cuda_rope.repeat(first | {"key_cache": keys, "value_cache": values})


def of_layer(call: dict[str, Any]) -> None:
    options = {name: call[name] for name in ("num_q_heads", "num_kv_heads", "head_dim", "eps", "mrope_section")}
    cuda_rope.of_layer(*(call[name] for name in OF_LAYER), json.dumps(options))


@pytest.fixture
def pretended(launches: Launches, monkeypatch: pytest.MonkeyPatch) -> Launches:
    """The operator runs as on CUDA, and so do calls of layers."""
    monkeypatch.setattr(cuda_rope, "_of_layers", {})
    operator = registry.find("qk_norm_rope")

    def run(*args: Any, **kwargs: Any) -> None:
        call = operator.bind(args, kwargs)
        assert cuda_rope.repeat(call) or launched(OP, call) is None

    monkeypatch.setattr(torch.ops.serving_ops, "qk_norm_rope", run)
    return launches


@pytest.mark.parametrize("spec", [PLAIN, dataclasses.replace(PLAIN, rotation=RopeSpec(2, mrope_section=(16, 8, 8)))])
def test_a_layers_call_is_launched_at_the_addresses_of_the_operators(pretended: Launches, spec: NormSpec) -> None:
    of_layer(call_of(spec))
    other = call_of(spec)
    of_layer(other)
    assert cuda_rope.repeat(other)
    (by_layer, by_operator) = pretended.again
    assert len(pretended.anew) == 1
    assert by_layer == by_operator


OF_LAYERS = [change for change in CHANGES if not {"is_neox", "q_weight"} & change.keys()]
"""Those of what `of_layer` passes."""


@pytest.mark.parametrize("change", OF_LAYERS, ids=lambda change: " ".join(change))
def test_a_layers_call_that_differs_in_more_is_checked(pretended: Launches, change: dict[str, Any]) -> None:
    of_layer(call_of())
    of_layer(call_of() | change)
    assert (len(pretended.anew), pretended.again) == (2, [])


def test_a_layers_call_whose_tensors_overlap_is_checked(pretended: Launches) -> None:
    call = call_of()
    of_layer(call)
    memory = torch.zeros(call["qkv"].numel() + 64, dtype=torch.bfloat16)
    of_layer(call | {"qkv": memory[: call["qkv"].numel()].view(5, 512), "k_weight": memory[-96:-32]})
    assert (len(pretended.anew), pretended.again) == (2, [])


def test_a_layers_call_on_cpu_is_the_operators() -> None:
    call, other = call_of(), call_of()
    of_layer(call)
    options = {name: other[name] for name in ("num_q_heads", "num_kv_heads", "head_dim", "eps")}
    torch.ops.serving_ops.qk_norm_rope(*(other[name] for name in OF_LAYER), **options)
    assert torch.equal(call["qkv"], other["qkv"])


def test_layouts_are_forgotten_before_they_pile_up(launches: Launches, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_rope, "MOST_KNOWN", 2)
    for tokens in (1, 2, 3):
        launched(OP, call_of(tokens=tokens))
    assert len(cuda_rope._known) == 1


def test_what_the_interpreter_ran_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_rope, "_known", {})
    monkeypatch.setattr(run_rope, "run_qk_norm_rope", lambda *args: None)
    launched(OP, call_of())
    assert cuda_rope._known == {}
