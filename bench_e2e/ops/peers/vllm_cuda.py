"""vLLM's CUDA kernels, from an installed vLLM or from the bare library beside other packages."""

from __future__ import annotations

import torch

from serving_ops.bench_e2e.ops.contestants import Contestant
from serving_ops.bench_e2e.ops.peers import installed, vllm_c

LIBRARIES = ["vllm/_C_stable_libtorch.abi3.so", "_C_stable_libtorch.abi3.so", "vllm/_C.abi3.so"]


def contestants() -> list[Contestant]:
    if not hasattr(torch.ops._C, "fused_add_rms_norm"):
        installed.load_library(LIBRARIES)
    version = installed.version("vllm")
    return [
        Contestant(vllm_c.NAME, version, vllm_c.bind),
        Contestant(vllm_c.PAIR, version, vllm_c.bind_pair),
    ]
