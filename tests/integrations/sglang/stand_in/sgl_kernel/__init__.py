"""Stands in for `sgl_kernel`, of which no CPU build is published: what gated delta nets need works, in plain PyTorch.

Any other name can be imported, and raises where it is called. SGLang asks PyTorch for
`sgl_kernel::convert_weight_packed` to learn whether there are AMX kernels: there are none.
"""

from __future__ import annotations

from typing import Any

import torch

from sgl_kernel.mamba import fused_gdn_gating_cpu, fused_sigmoid_gating_delta_rule_update_cpu

torch.ops.sgl_kernel.fused_gdn_gating_cpu = fused_gdn_gating_cpu
torch.ops.sgl_kernel.fused_sigmoid_gating_delta_rule_update_cpu = fused_sigmoid_gating_delta_rule_update_cpu


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)

    def absent(*args: Any, **kwargs: Any) -> None:
        raise NotImplementedError(f"sgl_kernel.{name}: this is a stand-in")

    return absent
