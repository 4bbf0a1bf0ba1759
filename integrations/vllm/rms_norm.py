"""vLLM's `RMSNorm` on our operators where its IR does not lead to them: its layers build it by the old name.

That is where vLLM has no IR, and with VLLM_BATCH_INVARIANT=1 in eager mode on CUDA: vLLM's own layer then calls
kernels of its own, where ours, whose bits do not depend on the batch either, do as well.

What `priority` keeps is kept here: compiled CUDA graphs leave norms of heads to Inductor (see
ir_providers.ROWS_PROVIDER). With a residual, both arguments are written, as vLLM's own layer writes them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from serving_ops.integrations.common.rows import alike, rows_fit
from serving_ops.integrations.vllm import features
from serving_ops.integrations.vllm.out_of_tree import OnServingOps, replace
from vllm.model_executor.layers.layernorm import RMSNorm


class ServingOpsRMSNorm(OnServingOps, RMSNorm):  # type: ignore[misc]
    """`RMSNorm` with the same parameters and attributes; what the kernels do not take stays vLLM's."""

    ops = ("rms_norm", "fused_add_rms_norm")

    native_is_ir = False
    """Whether vLLM's own `forward_native` asks its IR, and so our providers, or whoever the user put before them."""

    def why_native(self) -> str | None:
        """What the layer does beyond a norm of whole rows, or None."""
        if getattr(self, "variance_size_override", None) is not None:
            return "its variance is over a part of the row"
        return None

    def _scale(self) -> Tensor | None:
        return self.weight if self.has_weight else None

    def _takes(self, x: Tensor, residual: Tensor | None) -> bool:
        if self.stay_native or self.why_native() is not None or not rows_fit(x, self._scale()):
            return False
        return residual is None or (residual is not x and alike(x, residual))

    def _run(self, x: Tensor, residual: Tensor | None) -> Tensor | tuple[Tensor, Tensor]:
        ops = torch.ops.serving_ops
        if residual is None:
            result: Tensor = ops.rms_norm(x, self._scale(), self.variance_epsilon)
            return result
        ops.fused_add_rms_norm(x, residual, self._scale(), self.variance_epsilon)
        return x, residual

    def forward_native(self, x: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """Both modes on CPU, eager through `CustomOp.forward_cpu`; compiled mode on CUDA."""
        left_to_vllm = self.native_is_ir or (x.is_cuda and x.dim() != 2 and residual is None)
        if not left_to_vllm and self._takes(x, residual):
            return self._run(x, residual)
        native: Tensor | tuple[Tensor, Tensor] = super().forward_native(x, residual)
        return native

    def forward_cuda(self, x: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        if self._takes(x, residual):
            return self._run(x, residual)
        native: Tensor | tuple[Tensor, Tensor] = super().forward_cuda(x, residual)
        return native


def install() -> None:
    """Put it in place. Raises RuntimeError where another plugin has replaced RMSNorm."""
    replace(RMSNorm, ServingOpsRMSNorm)
    ServingOpsRMSNorm.native_is_ir = features.has_ir()
