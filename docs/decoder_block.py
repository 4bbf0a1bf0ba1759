"""A decoder block of one's own on serving_ops, for a decode step: `python docs/decoder_block.py` runs it.

A gated linear attention with q and k norms, then an MLP whose first projection takes quantized rows. The page beside
this file, decoder-block.md, explains it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import serving_ops
from serving_ops import Explanation, NormSpec, QuantFormat

EPS = 1e-6
DECAY = 0.9


def format_for(device: torch.device) -> QuantFormat:
    """One scale a token: FP8 where the GPU multiplies it, INT8 elsewhere."""
    fp8 = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)
    return QuantFormat(dtype=torch.float8_e4m3fn if fp8 else torch.int8, granularity="token")


class QuantizedLinear(nn.Module):
    """A projection of rows that are quantized already; its weight has one scale an output channel."""

    def __init__(self, weight: Tensor, fmt: QuantFormat) -> None:
        super().__init__()
        quantized, scales = serving_ops.reference.quantize(weight, fmt)
        self.register_buffer("weight", quantized)
        self.register_buffer("weight_scales", scales.reshape(1, -1))

    def forward(self, rows: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
        if rows.dtype == torch.int8:
            product = torch._int_mm(rows, self.weight.t())
            return (product * scales * self.weight_scales).to(dtype)
        return torch._scaled_mm(rows, self.weight.t(), scale_a=scales, scale_b=self.weight_scales, out_dtype=dtype)


class DecoderBlock(nn.Module):
    """x, residual (batch, hidden) -> what the next block adds to the residual; the residual is updated in place."""

    def __init__(self, batch: int, hidden: int, heads: int, head_dim: int, device: torch.device) -> None:
        super().__init__()
        self.hidden, self.heads, self.head_dim, self.device = hidden, heads, head_dim, device
        self.fmt = format_for(device)
        options = {"dtype": torch.bfloat16, "device": device}
        width = heads * head_dim
        self.in_proj = nn.Linear(hidden, 4 * width, bias=False, **options)
        self.out_proj = nn.Linear(width, hidden, bias=False, **options)
        self.up_proj = QuantizedLinear(nn.Linear(hidden, 4 * hidden, bias=False, **options).weight.detach(), self.fmt)
        self.down_proj = nn.Linear(4 * hidden, hidden, bias=False, **options)
        sizes = {
            "mixer_norm": hidden,
            "q_norm": head_dim,
            "k_norm": head_dim,
            "gate_norm": head_dim,
            "mlp_norm": hidden,
        }
        for name, size in sizes.items():
            self.register_parameter(name, nn.Parameter(torch.ones(size, **options)))
        self.register_buffer("state", torch.zeros(batch, heads, head_dim, head_dim, **options))
        self.requires_grad_(False)

    def norms(self) -> list[NormSpec]:
        """What `prewarm` needs to know: each norm with its size, dtypes, heads and strides."""
        common = {"dtype": torch.bfloat16, "weight_dtype": torch.bfloat16, "device": self.device, "eps": EPS}
        stride = 4 * self.heads * self.head_dim  # q, k and z are slices of one projection
        of_heads = {"size": self.head_dim, "heads": self.heads, **common}
        return [
            NormSpec("fused_add_rms_norm", size=self.hidden, **common),
            NormSpec("rms_norm", token_stride=stride, **of_heads),
            NormSpec("rms_norm_gated", gate_token_stride=stride, **of_heads),
            NormSpec("fused_add_rms_norm_quant", size=self.hidden, fmt=self.fmt, **common),
        ]

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        serving_ops.fused_add_rms_norm(x, residual, self.mixer_norm, EPS)
        q, k, v, z = self.split(x)
        serving_ops.rms_norm(q, self.q_norm, EPS, out=q)
        serving_ops.rms_norm(k, self.k_norm, EPS, out=k)
        self.state.mul_(DECAY).add_(k.unsqueeze(-1) * v.unsqueeze(-2))
        mixed = (q.unsqueeze(-2) @ self.state).squeeze(-2)
        serving_ops.rms_norm_gated(mixed, z, self.gate_norm, EPS, out=mixed)
        x = self.out_proj(mixed.flatten(1))
        rows, scales = serving_ops.fused_add_rms_norm_quant(x, residual, self.mlp_norm, EPS, fmt=self.fmt)
        return self.down_proj(F.silu(self.up_proj(rows, scales, x.dtype)))

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        """q, k, v and z, each (batch, heads, head_dim): views of one buffer."""
        return self.in_proj(x).unflatten(-1, (4, self.heads, self.head_dim)).unbind(1)

    def explain(self, x: Tensor, residual: Tensor) -> dict[str, Explanation]:
        """How each op would run for inputs of these shapes. Nothing is computed but the projection."""
        q, _, _, z = self.split(x)
        return {
            "fused_add_rms_norm": serving_ops.explain("fused_add_rms_norm", x, residual, self.mixer_norm, EPS),
            "rms_norm": serving_ops.explain("rms_norm", q, self.q_norm, EPS, out=q),
            "rms_norm_gated": serving_ops.explain("rms_norm_gated", torch.empty_like(z), z, self.gate_norm, EPS),
            "fused_add_rms_norm_quant": serving_ops.explain(
                "fused_add_rms_norm_quant", x, residual, self.mlp_norm, EPS, fmt=self.fmt
            ),
        }


def capture(block: DecoderBlock, x: Tensor, residual: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor]:
    """A CUDA graph of one step on these buffers, and the tensor that each replay writes."""
    state, stream = block.state.clone(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        block(x.clone(), residual.clone())  # cuBLAS makes its workspace before the capture
    torch.cuda.current_stream().wait_stream(stream)
    block.state.copy_(state)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = block(x, residual)
    return graph, y


def main() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    block = DecoderBlock(batch=4, hidden=512, heads=4, head_dim=128, device=device)
    report = serving_ops.prewarm(block.norms())
    print(f"prewarmed {len(report.warmed)} norms in {report.seconds:.1f} s; failed: {report.failed or 'none'}")
    x, residual = (torch.randn(4, 512, dtype=torch.bfloat16, device=device) for _ in range(2))
    for op, how in block.explain(x, residual).items():
        print(f"{op}: {how.path}" + (f" ({how.reason})" if how.reason else ""))
    if device.type == "cuda":
        graph, y = capture(block, x, residual)
        graph.replay()
    else:
        y = block(x, residual)
    print(f"one step: the result's mean square is {y.float().square().mean():.3g}")


if __name__ == "__main__":
    main()
