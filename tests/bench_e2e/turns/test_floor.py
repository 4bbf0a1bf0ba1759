"""Engines whose norms do nothing: vLLM's own layers in a process of their own, and what ends one of SGLang's."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from serving_ops.bench_e2e.turns import floor, sglang_scheduler
from serving_ops.integrations.sglang import layers

SCRIPT = """
import torch
from serving_ops.bench_e2e.turns.floor import remove_norms
remove_norms()
from vllm.config import CompilationConfig, VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.layernorm import GemmaRMSNorm, RMSNorm, RMSNormGated
x, residual = torch.randn(2, 3, 64), torch.randn(2, 3, 64)
for custom_ops in ("all", "none"):
    with set_current_vllm_config(VllmConfig(compilation_config=CompilationConfig(custom_ops=[custom_ops]))):
        for norm in (RMSNorm(64), GemmaRMSNorm(64)):
            assert norm(x) is x
            assert norm(x, residual) == (x, residual)
        assert RMSNormGated(64)(x, residual) is x
"""


def test_every_norm_returns_what_it_gets_eager_and_compiled() -> None:
    pytest.importorskip("vllm")
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.gpu
def test_an_empty_norm_is_a_kernel_that_changes_nothing() -> None:
    from serving_ops.bench_e2e.turns.empty_norm import empty_norm

    x = torch.randn(4, 64, device="cuda")
    before = x.clone()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        empty_norm(x)
        torch.cuda.synchronize()
    assert any("_empty_kernel" in event.key for event in profile.key_averages())
    assert torch.equal(x, before)


def _defined_in(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    adapter = dataclasses.replace(layers.ADAPTERS[0], defined_in=(module,))
    monkeypatch.setattr(layers, "ADAPTERS", (adapter,))


def test_norms_that_are_nowhere_are_no_norms_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    _defined_in(monkeypatch, "nowhere.layernorm")
    with pytest.raises(LookupError, match=r"no RMSNorm in nowhere\.layernorm"):
        floor.remove_sglangs_norms()


def test_norms_that_cannot_be_imported_are_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_layernorm.py").write_text("import nowhere")
    monkeypatch.syspath_prepend(tmp_path)
    _defined_in(monkeypatch, "broken_layernorm")
    with pytest.raises(ModuleNotFoundError, match="nowhere"):
        floor.remove_sglangs_norms()


def test_a_scheduler_that_keeps_its_norms_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """SGLang logs whatever a plugin raises, and goes on."""
    for name in ("sglang", "sglang.srt", "sglang.srt.managers", "sglang.srt.managers.scheduler"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setattr(sys.modules["sglang.srt.managers.scheduler"], "Scheduler", type("Scheduler", (), {}), False)
    monkeypatch.setenv(sglang_scheduler.VARIANT, floor.NO_NORMS)
    _defined_in(monkeypatch, "nowhere.layernorm")
    with pytest.raises(SystemExit, match="this SGLang has no RMSNorm"):
        sglang_scheduler.register()
