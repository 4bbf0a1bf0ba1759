"""How often a norm of an engine rounds."""

from __future__ import annotations

import torch

WEIGHT_IN_FP32 = torch.finfo(torch.float32).tiny
"""A `weight_offset` that is too small to change a weight. It makes `rms_norm` and `fused_add_rms_norm` apply a weight
of x's dtype in fp32 and round once. Without an offset they round before the weight too.

SGLang's kernels round once. vLLM's IR ops are written with two roundings, and have them in eager mode; in compiled
models Inductor leaves the first one out. One rounding is nearer to fp32, so both engines get it: an eager bf16 SmolLM2
on CPU has 0.92 of the mean KL divergence from fp32 that it has with vLLM's two (docs/accuracy.md). A weight of zero
gives 1e-38 of the normed row, which is 0 in fp16 and nearly 0 in bf16."""
