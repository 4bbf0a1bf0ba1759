"""vLLM's `FusedRMSNormGated` on our operator: KDA layers (Kimi-Linear, GLM-5, Bailing) build it by the old name.

vLLM has had two classes of that name, alike but for their file, which cannot both be imported: the one here is the one
that its models import. Eager, one core (Zen 5), 32 heads of 128: 7.4 us a token where vLLM's takes 19, and 0.44 ms for
512 tokens where it takes 3.7. On CUDA vLLM's is flash-linear-attention's kernel, or Inductor's: bench_e2e/results/
ops-h200.json has both beside ours, in the gated regime; no engine with this class has been measured there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from serving_ops.integrations.common.rows import alike, in_shape_of, rows_fit
from serving_ops.integrations.vllm.out_of_tree import OnServingOps, replace

try:
    from vllm.third_party.flash_linear_attention.ops.kda import FusedRMSNormGated
except ModuleNotFoundError:  # 0.25 has it here
    from vllm.model_executor.layers.fla.ops.kda import FusedRMSNormGated


class ServingOpsFusedRMSNormGated(OnServingOps, FusedRMSNormGated):  # type: ignore[misc]
    """`FusedRMSNormGated` with the same parameters and attributes; what the kernels do not take stays vLLM's."""

    ops = ("rms_norm_gated",)

    def _takes(self, x: Tensor, g: Tensor) -> bool:
        return not self.stay_native and rows_fit(x, self.weight) and alike(x, g)

    def _run(self, x: Tensor, g: Tensor) -> Tensor:
        result: Tensor = torch.ops.serving_ops.rms_norm_gated(x, g, self.weight, self.eps, activation=self.activation)
        return result

    def forward_native(
        self,
        x: Tensor,
        g: Tensor,
        residual: Tensor | None = None,
        prenorm: bool = False,
        residual_in_fp32: bool = False,
    ) -> Tensor:
        """Compiled mode on every device; eager mode on CPU, through `CustomOp.forward_cpu`."""
        heads = in_shape_of(g, x)
        if residual is None and not prenorm and self._takes(heads, g):
            return self._run(heads, g).view(x.shape)
        native: Tensor = super().forward_native(x, g, residual, prenorm, residual_in_fp32)
        return native

    def forward_cuda(
        self,
        x: Tensor,
        g: Tensor,
        residual: Tensor | None = None,
        prenorm: bool = False,
        residual_in_fp32: bool = False,
    ) -> Tensor:
        heads = in_shape_of(g, x)
        if residual is None and not prenorm and self._takes(heads, g):
            return self._run(heads, g).view(x.shape)
        native: Tensor = super().forward_cuda(x, g, residual, prenorm, residual_in_fp32)
        return native


def install() -> None:
    """Put it in place. Raises RuntimeError where another plugin has replaced FusedRMSNormGated."""
    replace(FusedRMSNormGated, ServingOpsFusedRMSNormGated)
