"""vLLM's `Mixer2RMSNormGated` on our operator: Mamba-2 layers build it by the old name.

It gates with SiLU, then norms groups. vLLM's own rounds the normed row before its weight; ours rounds once, at the end.
Where a group's variance is spread over tensor-parallel ranks, vLLM's own code runs. Eager, one core (Zen 5), one group
of 2048: 7.6 us a row where vLLM's takes 19, and 0.29 ms for 512 rows where it takes 5.6. On an H200 the device time of
a Mamba-2's eager decode step falls by 2 to 4% (bench_e2e/results/turns-h200-mamba2-eager.json).
"""

from __future__ import annotations

import torch
from torch import Tensor

from serving_ops.integrations.common.rows import alike, rows_fit
from serving_ops.integrations.vllm.out_of_tree import OnServingOps, replace
from vllm.model_executor.layers.mamba.mamba_mixer2 import Mixer2RMSNormGated


class ServingOpsMixer2RMSNormGated(OnServingOps, Mixer2RMSNormGated):  # type: ignore[misc]
    """`Mixer2RMSNormGated` with the same parameters and attributes; what the kernels do not take stays vLLM's."""

    ops = ("rms_norm_gated",)

    def why_native(self) -> str | None:
        """What the layer does beyond a gated norm of this rank's rows, or None."""
        if not self.use_rms_norm:
            return "it gates without a norm"
        if self.n_groups % self.tp_size != 0:
            return "its groups are spread over tensor-parallel ranks"
        return None

    def _takes(self, x: Tensor, gate: Tensor) -> bool:
        return not self.stay_native and self.why_native() is None and rows_fit(x, self.weight) and alike(x, gate)

    def _run(self, x: Tensor, gate: Tensor) -> Tensor:
        result: Tensor = torch.ops.serving_ops.rms_norm_gated(
            x, gate, self.weight, self.variance_epsilon, norm_before_gate=False, group_size=self.group_size
        )
        return result

    def forward_native(self, x: Tensor, gate: Tensor) -> Tensor:
        """Compiled mode on every device; eager mode on CPU, through `CustomOp.forward_cpu`."""
        if self._takes(x, gate):
            return self._run(x, gate)
        native: Tensor = super().forward_native(x, gate)
        return native

    def forward_cuda(self, x: Tensor, gate: Tensor) -> Tensor:
        if self._takes(x, gate):
            return self._run(x, gate)
        native: Tensor = super().forward_cuda(x, gate)
        return native


def install() -> None:
    """Put it in place. Raises RuntimeError where another plugin has replaced Mixer2RMSNormGated."""
    replace(Mixer2RMSNormGated, ServingOpsMixer2RMSNormGated)
