"""vLLM's `RMSNormGated` on our operator, as an out-of-tree class: GDN and OLMo layers build it by the old name.

Taken in every mode. Eager, CUDA's flash-linear-attention kernel copies a strided z and CPU has no fused one; compiled,
Inductor's code competes, and `bench_e2e --ops --regime gated` times both.
"""

from __future__ import annotations

import torch
from torch import Tensor

from serving_ops.checks import ACTIVATIONS
from serving_ops.support import KERNEL_DTYPES
from vllm.model_executor.custom_op import CustomOp, op_registry_oot
from vllm.model_executor.layers.layernorm import RMSNormGated

IN_TREE_NAME = "RMSNormGated"
FLAG = "rms_norm_gated"


def supports(layer: RMSNormGated, x: Tensor, z: Tensor | None) -> bool:
    """Whether the operator's kernels take this call, from metadata alone (the call may be traced)."""
    if x.dtype not in KERNEL_DTYPES or x.stride(-1) != 1 or layer.activation not in ACTIVATIONS:
        return False
    if layer.weight.dtype != x.dtype and layer.weight.dtype != torch.float32:
        return False
    return z is None or (z.dtype == x.dtype and z.shape == x.shape and z.stride(-1) == 1)


class ServingOpsRMSNormGated(RMSNormGated):  # type: ignore[misc]
    """`RMSNormGated` with the same parameters and attributes; what the kernels do not take stays vLLM's."""

    stay_native = False
    """Set on the class where prewarm failed, on a layer where no kernel takes its size: vLLM's own code runs."""

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
        if not self.stay_native and supports(self, x, z):
            return self._run(x, z)
        native: Tensor = super().forward_native(x, z)
        return native

    def forward_cuda(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        if not self.stay_native and supports(self, x, z):
            return self._run(x, z)
        native: Tensor = super().forward_cuda(x, z)
        return native


def install() -> None:
    """Register the class, once a process. Raises RuntimeError where another plugin has replaced RMSNormGated."""
    present = op_registry_oot.get(IN_TREE_NAME)
    if present is ServingOpsRMSNormGated:
        return
    if present is not None:
        raise RuntimeError(f"{present.__module__}.{present.__name__} already replaces RMSNormGated")
    CustomOp.register_oot(name=IN_TREE_NAME)(ServingOpsRMSNormGated)
    ServingOpsRMSNormGated.name = FLAG  # register_oot overwrote it, and custom_ops flags go by it
