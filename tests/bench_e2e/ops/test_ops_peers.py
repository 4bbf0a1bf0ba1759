"""Adapters against stand-ins with the projects' signatures: argument order, in-place writes, skipping."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from serving_ops import reference, rope_reference
from serving_ops.bench_e2e.ops import peers
from serving_ops.bench_e2e.ops.cases import FORMS, FUSED_ADD, FUSED_ADD_QUANT, GATED, QK_ROPE, RMS_NORM, Case
from serving_ops.bench_e2e.ops.check import problem
from serving_ops.bench_e2e.ops.contestants import Contestant, Unsupported, peer
from serving_ops.bench_e2e.ops.inputs import make_inputs
from serving_ops.quant_format import QuantFormat

ALL = peers.adapters_for("ops", "cuda", libraries=True)


def _stand_in(monkeypatch: pytest.MonkeyPatch, name: str, **functions: Any) -> None:
    """A module of that name, and its parent packages, in sys.modules."""
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        monkeypatch.setitem(sys.modules, ".".join(parts[:end]), ModuleType(".".join(parts[:end])))
    vars(sys.modules[name]).update(functions)


@pytest.fixture
def flashinfer(monkeypatch: pytest.MonkeyPatch) -> None:
    def rmsnorm(
        input: Tensor, weight: Tensor, eps: float = 1e-6, out: Tensor | None = None, enable_pdl: bool | None = None
    ) -> Tensor:
        assert out is not None
        return out.copy_(reference.rms_norm(input, weight, eps))

    def fused_add_rmsnorm(
        input: Tensor, residual: Tensor, weight: Tensor, eps: float = 1e-6, enable_pdl: bool | None = None
    ) -> None:
        reference.fused_add_rms_norm(input, residual, weight, eps)

    def fused_add_rmsnorm_fp8_block_quant(
        out: Tensor,
        block_scale: Tensor,
        normed_out: Tensor,
        input: Tensor,
        residual: Tensor,
        weight: Tensor,
        eps: float = 1e-6,
        enable_pdl: bool | None = None,
    ) -> None:
        rows, size = input.shape
        assert block_scale.shape == (size // 128, -(-rows // 4) * 4)
        assert block_scale.is_contiguous()
        normed, total = reference.add_rms_norm(input, residual, weight, eps)
        residual.copy_(total)
        _quantize(normed_out.copy_(normed), out, block_scale.T[:rows], QuantFormat())

    norms = (rmsnorm, fused_add_rmsnorm, fused_add_rmsnorm_fp8_block_quant)
    _stand_in(monkeypatch, "flashinfer.norm", **{norm.__name__: norm for norm in norms})


@pytest.fixture
def quack(monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(
        x: Tensor,
        weight: Tensor | None,
        out: Tensor,
        bias: Tensor | None = None,
        rstd: Tensor | None = None,
        mean: Tensor | None = None,
        residual: Tensor | None = None,
        residual_out: Tensor | None = None,
        eps: float = 1e-6,
        is_layernorm: bool = False,
        weight_offset: float = 0.0,
    ) -> None:
        assert bias is None
        assert rstd is None
        assert mean is None
        if residual is None:
            out.copy_(reference.rms_norm(x, weight, eps))
        else:
            assert residual_out is residual
            assert out is x
            reference.fused_add_rms_norm(x, residual, weight, eps)

    _stand_in(monkeypatch, "quack.rmsnorm", _rmsnorm_fwd=forward)


@pytest.fixture
def liger(monkeypatch: pytest.MonkeyPatch) -> None:
    class FusedAdd:
        @staticmethod
        def apply(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
            return reference.fused_add_rms_norm(x.clone(), residual.clone(), weight, eps)

    class RMSNorm:
        @staticmethod
        def apply(x: Tensor, weight: Tensor, eps: float) -> Tensor:
            return reference.rms_norm(x, weight, eps)

    _stand_in(monkeypatch, "liger_kernel.ops.rms_norm", LigerRMSNormFunction=RMSNorm)
    fused_add = ModuleType("liger_kernel.ops.fused_add_rms_norm")
    vars(fused_add)["LigerFusedAddRMSNormFunction"] = FusedAdd
    monkeypatch.setitem(sys.modules, fused_add.__name__, fused_add)


@pytest.fixture
def fla(monkeypatch: pytest.MonkeyPatch) -> None:
    def layer_norm_fwd(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        eps: float,
        z: Tensor | None = None,
        out: Tensor | None = None,
        group_size: int | None = None,
        norm_before_gate: bool = True,
        is_rms_norm: bool = False,
    ) -> None:
        assert x.dim() == 2
        assert z is not None
        assert z.shape == x.shape
        assert is_rms_norm
        assert out is not None
        out.copy_(reference.rms_norm_gated(x, z, weight, eps, norm_before_gate=norm_before_gate))

    def layer_norm_gated_fwd(
        x: Tensor,
        g: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        activation: str = "swish",
        eps: float = 1e-5,
        residual: Tensor | None = None,
        out_dtype: torch.dtype | None = None,
        residual_dtype: torch.dtype | None = None,
        is_rms_norm: bool = False,
    ) -> tuple[Tensor, None, None, Tensor]:
        assert is_rms_norm
        assert g.shape == x.shape
        return reference.rms_norm_gated(x, g, weight, eps, activation=activation), None, None, x

    _stand_in(monkeypatch, "fla.modules.layernorm_gated", layer_norm_fwd=layer_norm_fwd)
    gate = ModuleType("fla.modules.fused_norm_gate")
    vars(gate)["layer_norm_gated_fwd"] = layer_norm_gated_fwd
    monkeypatch.setitem(sys.modules, gate.__name__, gate)


@pytest.fixture
def sgl() -> Iterator[None]:
    library: Any = torch.library.Library("sgl_kernel", "FRAGMENT")
    norm = "Tensor weight, float eps, bool enable_pdl) -> ()"
    library.define(f"rmsnorm(Tensor! output, Tensor input, {norm}")
    library.define(f"fused_add_rmsnorm(Tensor! input, Tensor! residual, {norm}")
    library.impl("rmsnorm", _sgl_rmsnorm, "CPU")
    library.impl("fused_add_rmsnorm", _sgl_fused_add, "CPU")
    yield
    library._destroy()


def _sgl_rmsnorm(output: Tensor, x: Tensor, weight: Tensor, eps: float, enable_pdl: bool) -> None:
    output.copy_(reference.rms_norm(x, weight, eps))


def _sgl_fused_add(x: Tensor, residual: Tensor, weight: Tensor, eps: float, enable_pdl: bool) -> None:
    reference.fused_add_rms_norm(x, residual, weight, eps)


def _check(contestant: Contestant, case: Case) -> None:
    inputs = make_inputs(case, "cpu")
    assert problem(case, inputs, contestant.bind(case, inputs)) is None, contestant.name


def _load(adapter: str) -> list[Contestant]:
    found, absent = peers.load({adapter: ALL[adapter]})
    assert not absent
    return found


@pytest.mark.parametrize(
    ("adapter", "names"),
    [
        ("FlashInfer", ["FlashInfer", "FlashInfer PDL"]),
        ("Quack", ["Quack"]),
        ("Liger", ["Liger"]),
        ("sgl", ["sgl", "sgl PDL"]),
    ],
)
@pytest.mark.usefixtures("flashinfer", "quack", "liger", "sgl")
def test_plain_norms_of_the_projects_give_the_right_result(adapter: str, names: list[str]) -> None:
    found = _load(adapter)
    assert [contestant.name for contestant in found if contestant.call] == names
    for contestant in found[: len(names)]:
        for op in (FUSED_ADD, RMS_NORM):
            _check(contestant, Case("decode", op, (4, 64)))
        gated = Case("gated", GATED, (2, 3, 128), weight="float32")
        with pytest.raises(Unsupported):
            contestant.bind(gated, make_inputs(gated, "cpu"))


@pytest.mark.usefixtures("flashinfer")
@pytest.mark.parametrize("rows", [1, 6, 8])
def test_flashinfers_norm_for_blocks_gives_the_right_result_and_it_has_none_for_a_scale_a_row(rows: int) -> None:
    for contestant in _load("FlashInfer"):
        _check(contestant, Case("quant", FUSED_ADD_QUANT, (rows, 256), form="block"))
        token = Case("quant", FUSED_ADD_QUANT, (rows, 256), form="token")
        with pytest.raises(Unsupported):
            contestant.bind(token, make_inputs(token, "cpu"))


@pytest.mark.usefixtures("fla")
@pytest.mark.parametrize("layout", ["contiguous", "strided"])
def test_gated_norms_of_fla_give_the_right_result(layout: str) -> None:
    for contestant in _load("FLA"):
        _check(contestant, Case("gated", GATED, (2, 3, 128), weight="float32", layout=layout))


@pytest.mark.usefixtures("fla")
def test_fla_leaves_the_plain_norms_out() -> None:
    case = Case("decode", RMS_NORM, (4, 64))
    for contestant in _load("FLA"):
        with pytest.raises(Unsupported):
            contestant.bind(case, make_inputs(case, "cpu"))


def test_vllm_cpu_kernels_give_the_right_result() -> None:
    found, absent = peers.load(peers.adapters_for("ops", "cpu", libraries=False))
    if absent:
        pytest.skip(f"vLLM's CPU kernels are not here: {absent['vLLM']}")
    for op in (FUSED_ADD, RMS_NORM):
        _check(found[0], Case("rows", op, (4, 896)))


def _quantize(y: Tensor, q: Tensor, scales: Tensor, fmt: QuantFormat) -> None:
    for result, tensor in zip((q, scales), reference.quantize(y, fmt), strict=True):
        result.copy_(tensor)


def _vllm_token(q: Tensor, x: Tensor, scales: Tensor, ub: Tensor | None) -> None:
    assert ub is None
    _quantize(x, q, scales, FORMS["token"])


def _vllm_group(x: Tensor, q: Tensor, scales: Tensor, group: int, eps: float, *limits_and_layout: float) -> None:
    assert (group, eps) == (128, 1e-10)
    assert limits_and_layout == (-448.0, 448.0, False, True, False)
    _quantize(x, q, scales, FORMS["block"])


def _vllm_token_norm(
    q: Tensor, x: Tensor, weight: Tensor, scales: Tensor, eps: float, ub: Tensor | None, residual: Tensor
) -> None:
    y, total = reference.add_rms_norm(x, residual, weight, eps)
    residual.copy_(total)
    _vllm_token(q, y, scales, ub)


def _vllm_block_norm(
    q: Tensor,
    x: Tensor,
    weight: Tensor,
    scales: Tensor,
    eps: float,
    ub: Tensor | None,
    residual: Tensor,
    group: int,
    transposed: bool,
) -> None:
    assert (group, transposed, scales.stride(0), ub) == (128, True, 1, None)
    y, total = reference.add_rms_norm(x, residual, weight, eps)
    residual.copy_(total)
    _quantize(y, q, scales, FORMS["block"])


def _vllm_int8(q: Tensor, x: Tensor, scales: Tensor, azp: Tensor | None) -> None:
    assert azp is None
    _quantize(x, q, scales, FORMS["int8"])


VLLM_QUANT = {
    "dynamic_scaled_int8_quant": _vllm_int8,
    "rms_norm_per_block_quant": _vllm_block_norm,
    "rms_norm_dynamic_per_token_quant": _vllm_token_norm,
    "dynamic_per_token_scaled_fp8_quant": _vllm_token,
    "per_token_group_fp8_quant": _vllm_group,
}


@pytest.mark.parametrize(
    ("form", "calls"),
    [*((form, peers.PAIRS) for form in FORMS), ("block", peers.FUSED), ("token", peers.FUSED)],
)
def test_vllm_quantized_norms_give_the_right_result(
    form: str, calls: dict[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "_op", VLLM_QUANT.__getitem__)  # its CPU build has one of the names, for nothing
    _check(peer("vLLM", "1", calls), Case("quant", FUSED_ADD_QUANT, (4, 1024), form=form))


def _vllm_norm_rope(
    qkv: Tensor,
    q_heads: int,
    k_heads: int,
    v_heads: int,
    size: int,
    eps: float,
    q_weight: Tensor,
    k_weight: Tensor,
    table: Tensor,
    is_neox: bool,
    positions: Tensor,
) -> None:
    assert k_heads == v_heads
    sizes = {"num_q_heads": q_heads, "num_kv_heads": k_heads, "head_dim": size}
    rope_reference.qk_norm_rope(qkv, positions, table, q_weight, k_weight, eps=eps, is_neox=is_neox, **sizes)


def _vllm_norm(out: Tensor, x: Tensor, weight: Tensor, eps: float) -> None:
    out.copy_(reference.rms_norm(x, weight, eps))


def _vllm_rotation(positions: Tensor, query: Tensor, key: Tensor, size: int, table: Tensor, is_neox: bool) -> None:
    cos, sin = table[positions].chunk(2, dim=1)
    for x in (query, key):
        x.copy_(rope_reference.rotated(x.unflatten(1, (-1, size)), cos, sin, is_neox).flatten(1))


def _vllm_put(
    k: Tensor, v: Tensor, keys: Tensor, values: Tensor, slots: Tensor, dtype: str, k_scale: Tensor, v_scale: Tensor
) -> None:
    assert dtype == "auto"
    for x, cache in ((k, keys), (v, values)):
        cache.view(-1, *x.shape[1:])[slots] = x


VLLM_ROPE = {
    "fused_qk_norm_rope": _vllm_norm_rope,
    "rms_norm": _vllm_norm,
    "rotary_embedding": _vllm_rotation,
    "reshape_and_cache_flash": _vllm_put,
}


@pytest.mark.parametrize("form", [None, "cached"])
@pytest.mark.parametrize("calls", [peers.FUSED, peers.APART], ids=["fused", "apart"])
def test_vllm_norms_and_rotations_give_the_right_result(
    form: str | None, calls: dict[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "_op", lambda name, library="_C": VLLM_ROPE[name])
    _check(peer("vLLM", "1", calls), Case("rope", QK_ROPE, (4, 4, 2, 64), form=form))


def test_a_build_without_quantized_norms_leaves_them_out() -> None:
    if hasattr(torch.ops._C, "rms_norm_per_block_quant"):
        pytest.skip("this process has loaded vLLM's own")
    case = Case("quant", FUSED_ADD_QUANT, (4, 1024), form="block")
    with pytest.raises(Unsupported, match="rms_norm_per_block_quant"):
        peer("vLLM", "1", peers.FUSED).bind(case, make_inputs(case, "cpu"))


@pytest.mark.parametrize("adapter", ALL)
def test_what_is_not_installed_is_left_out_with_a_reason(adapter: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("flashinfer.norm", "quack.rmsnorm", "liger_kernel.ops.fused_add_rms_norm"):
        monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, "fla.modules.layernorm_gated", None)
    monkeypatch.setattr(sys, "path", [])
    if adapter == "vLLM" and hasattr(torch.ops._C, "fused_add_rms_norm"):
        pytest.skip("this process has loaded vLLM's operators already")
    found, absent = peers.load({adapter: ALL[adapter]})
    assert found == []
    assert "Error: " in absent[adapter]


def test_an_adapter_broken_in_any_way_does_not_stop_the_others() -> None:
    def broken() -> list[Contestant]:
        raise ZeroDivisionError("division by zero")

    assert peers.load({"Broken": broken}) == ([], {"Broken": "ZeroDivisionError: division by zero"})


def test_only_engines_run_unless_the_libraries_are_asked_for() -> None:
    assert peers.adapters_for("ops", "cpu", libraries=False) == {"vLLM": peers.vllm_c}
    assert set(peers.adapters_for("ops", "cuda", libraries=False)) == {"vLLM", "sgl"}
    assert len(peers.adapters_for("ops", "cuda", libraries=True)) == 6
