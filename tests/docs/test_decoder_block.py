"""The example for people with layers of their own does what its page says."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import serving_ops

DOCS = Path(__file__).parents[2] / "docs"
STEPS = 3


def _example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("decoder_block", DOCS / "decoder_block.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


example = _example()


def _block(device: torch.device) -> torch.nn.Module:
    torch.manual_seed(0)
    block = example.DecoderBlock(batch=3, hidden=256, heads=2, head_dim=128, device=device)
    for name, parameter in block.named_parameters():
        if name.endswith("norm"):
            parameter.uniform_(0.5, 1.5)
    return block


def _inputs(device: torch.device, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, residual = (torch.randn(3, 256, generator=generator).to(device, torch.bfloat16) for _ in range(2))
    return x, residual


def _norm(x: Tensor, weight: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + example.EPS) * weight.double()


def _in_float64(block: torch.nn.Module, x: Tensor, residual: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The step's formula without a rounding: the result, the residual and the new state."""
    residual = residual + x
    weights = {name: parameter.double() for name, parameter in block.named_parameters()}
    rows = F.linear(_norm(residual, block.mixer_norm), weights["in_proj.weight"])
    q, k, v, z = rows.unflatten(-1, (4, block.heads, block.head_dim)).unbind(1)
    q, k = _norm(q, block.q_norm), _norm(k, block.k_norm)
    state = state * example.DECAY + k.unsqueeze(-1) * v.unsqueeze(-2)
    mixed = _norm((q.unsqueeze(-2) @ state).squeeze(-2), block.gate_norm) * F.silu(z)
    residual = residual + F.linear(mixed.flatten(1), weights["out_proj.weight"])
    up = block.up_proj.weight.double() * block.up_proj.weight_scales.double().t()
    return F.linear(F.silu(F.linear(_norm(residual, block.mlp_norm), up)), weights["down_proj.weight"]), residual, state


def _relative(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


def test_steps_compute_the_formula_and_update_residual_and_state_in_place(device: torch.device) -> None:
    block = _block(device)
    state = block.state.double()
    for step in range(STEPS):
        x, residual = _inputs(device, step)
        y, total, state = _in_float64(block, x.double(), residual.double(), state)
        found = block(x, residual)
        assert _relative(residual, total) < 0.01
        assert _relative(block.state, state) < 0.02
        assert _relative(found, y) < 0.06  # 8 bits a value in the MLP's rows, of which the largest fixes the scale


def test_explain_names_a_kernel_for_every_op_that_has_one_here(device: torch.device) -> None:
    block = _block(device)
    before = [tensor.clone() for tensor in _inputs(device, 0)]
    x, residual = _inputs(device, 0)
    paths = {op: how.path for op, how in block.explain(x, residual).items()}
    assert set(paths) == {spec.op for spec in block.norms()}
    if device.type == "cuda":
        assert all(path.startswith("triton.") for path in paths.values())
    elif serving_ops.cpp_library() is not None:
        assert {paths[op] for op in ("fused_add_rms_norm", "rms_norm", "rms_norm_gated")} == {"cpu"}
    assert torch.equal(x, before[0])
    assert torch.equal(residual, before[1])


def test_the_norms_that_the_block_describes_are_those_that_it_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    block, (x, residual) = _block(torch.device("cpu")), _inputs(torch.device("cpu"), 0)
    called: dict[str, tuple[int, int]] = {}
    for op in ("fused_add_rms_norm", "rms_norm", "rms_norm_gated", "fused_add_rms_norm_quant"):
        original = getattr(serving_ops, op)

        def record(*args: Tensor, name: str = op, original: object = original, **more: object) -> object:
            called[name] = (args[0].shape[-1], args[0].numel() // args[0].shape[-1] // args[0].shape[0])
            return original(*args, **more)  # type: ignore[operator]

        monkeypatch.setattr(serving_ops, op, record)
    block(x, residual)
    assert called == {spec.op: (spec.size, spec.heads) for spec in block.norms()}


def test_prewarm_takes_every_norm_of_the_block(device: torch.device) -> None:
    report = serving_ops.prewarm(_block(device).norms())
    assert (len(report.warmed), report.failed) == (4, {})


@pytest.mark.gpu
def test_a_replayed_graph_has_the_bits_of_eager_steps() -> None:
    device = torch.device("cuda")
    eager, captured = _block(device), _block(device)
    serving_ops.prewarm(captured.norms())
    buffers = tuple(torch.zeros_like(tensor) for tensor in _inputs(device, 0))
    graph, y = example.capture(captured, *buffers)
    for step in range(STEPS):
        for buffer, tensor in zip(buffers, _inputs(device, step), strict=True):
            buffer.copy_(tensor)
        graph.replay()
        x, residual = _inputs(device, step)
        assert torch.equal(y, eager(x, residual))
        assert torch.equal(buffers[1], residual)
        assert torch.equal(captured.state, eager.state)


def test_the_example_runs_as_a_script() -> None:
    done = subprocess.run([sys.executable, DOCS / "decoder_block.py"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "prewarmed 4 norms" in done.stdout
    assert "failed: none" in done.stdout


def test_the_code_on_the_page_stands_in_the_example() -> None:
    code = (DOCS / "decoder_block.py").read_text()
    shown = re.findall(r"```python\n(.*?)```", (DOCS / "decoder-block.md").read_text(), re.DOTALL)
    assert len(shown) >= 3
    for snippet in shown:
        for line in snippet.splitlines():
            assert not line.strip() or re.search(rf"^ *{re.escape(line.strip())}$", code, re.MULTILINE), line
