"""vLLM's `RMSNormGated` on our operator: GDN and OLMo layers build it by the old name.

Taken in every mode. Eager, CUDA's flash-linear-attention kernel copies a strided z and CPU has no fused one; compiled,
Inductor's code competes, and `bench_e2e --ops --regime gated` times both.
"""

from __future__ import annotations

import torch
from torch import Tensor

from serving_ops.checks import ACTIVATIONS
from serving_ops.integrations.common.rows import alike, rows_fit
from serving_ops.integrations.vllm.out_of_tree import OnServingOps, replace
from vllm.model_executor.layers.layernorm import RMSNormGated


class ServingOpsRMSNormGated(OnServingOps, RMSNormGated):  # type: ignore[misc]
    """`RMSNormGated` with the same parameters and attributes; what the kernels do not take stays vLLM's."""

    ops = ("rms_norm_gated",)

    def _takes(self, x: Tensor, z: Tensor | None) -> bool:
        if self.stay_native or self.activation not in ACTIVATIONS or not rows_fit(x, self.weight):
            return False
        return z is None or alike(x, z)

    def _run(self, x: Tensor, z: Tensor | None) -> Tensor:
        result: Tensor = torch.ops.serving_ops.rms_norm_gated(
            x,
            z,
            self.weight,
            self.eps,
            bias=self.bias,
            norm_before_gate=self.norm_before_gate,
            activation=self.activation,
            group_size=self.group_size,
        )
        return result

    def forward_native(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        """Compiled mode on every device; eager mode on CPU, through `CustomOp.forward_cpu`."""
        if self._takes(x, z):
            return self._run(x, z)
        native: Tensor = super().forward_native(x, z)
        return native

    def forward_cuda(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        if self._takes(x, z):
            return self._run(x, z)
        native: Tensor = super().forward_cuda(x, z)
        return native


def install() -> None:
    """Put it in place. Raises RuntimeError where another plugin has replaced RMSNormGated."""
    replace(RMSNormGated, ServingOpsRMSNormGated)
