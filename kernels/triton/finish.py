"""From a normalised row to the result, in fp32: weight, bias and gate. Parts that are absent are None."""

import triton
import triton.language as tl
from serving_ops.kernels.triton.arithmetic import columns_at

_LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def gate_of(z, SIGMOID: tl.constexpr):
    """Sigmoid or SiLU of z in fp32. The square of a reciprocal root takes fewer instructions than a division, and errs
    by a few units in the last place of fp32 more, which half precision does not show."""
    HALF: tl.constexpr = z.dtype != tl.float32
    z = z.to(tl.float32)
    if HALF:
        root = tl.rsqrt(1.0 + tl.exp2(-z * _LOG2_E))
        sigmoid = root * root
    else:
        sigmoid = 1.0 / (1.0 + tl.exp(-z))
    if SIGMOID:
        return sigmoid
    return z * sigmoid


@triton.jit
def finish(normed, weight, weight_offset, WEIGHT_IN_FP32: tl.constexpr, dtype: tl.constexpr):
    """Apply the weight of the plain norms: in fp32, or, for a weight of x's dtype, after rounding to that dtype."""
    if WEIGHT_IN_FP32:
        return normed * (weight.to(tl.float32) + weight_offset)
    return normed.to(dtype).to(tl.float32) * weight.to(tl.float32)


@triton.jit
def finish_gated(normed, weight, bias_ptr, columns, mask, gate, ALIGNED: tl.constexpr):
    """Apply weight, bias and gate in fp32. The bias is loaded here, so that it holds no registers before."""
    if weight is not None:
        normed *= weight[None, :]
    if bias_ptr is not None:
        bias = tl.load(columns_at(bias_ptr, columns, ALIGNED), mask=mask, other=0.0)
        normed += bias.to(tl.float32)[None, :]
    if gate is not None:
        normed *= gate
    return normed
