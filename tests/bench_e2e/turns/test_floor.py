"""Engines whose norms do nothing, on vLLM's own layers in a process of their own."""

from __future__ import annotations

import subprocess
import sys

import pytest

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
