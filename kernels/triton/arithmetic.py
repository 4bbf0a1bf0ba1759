"""The pieces that the kernels share: the row sum, the weight, the gate, the wait for the kernel before."""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def wait_for_kernel_before(PDL: tl.constexpr):
    """Programmatic dependent launch: this kernel may start while the one before still runs, so nothing that another
    kernel may have written is read above this line. Dependents are let in only below it, when all that came before is
    complete: a kernel two places down never starts while this one's inputs are still being written."""
    if PDL:
        gdc_wait()
        gdc_launch_dependents()


@triton.jit
def warm_cache(ptr, offsets, mask, PDL: tl.constexpr):
    """Bring a weight to L2 while the kernel before still runs. Its values are read again after the wait, since that
    kernel may be the one that writes them (`weight.float() + 1`): a prefetch cannot make a stale value visible."""
    if PDL:
        tl.load(ptr + offsets, mask=mask, volatile=True)


@triton.jit
def pairwise_sum(values, ROWS: tl.constexpr, WIDTH: tl.constexpr, LOG2_WIDTH: tl.constexpr):
    """Row sums of (ROWS, WIDTH), as a binary tree over neighbours: the same bits in every layout, tile and warp."""
    for level in tl.static_range(LOG2_WIDTH):
        values = tl.sum(tl.reshape(values, (ROWS, WIDTH >> (level + 1), 2)), axis=2)
    return tl.reshape(values, (ROWS,))


@triton.jit
def weighted(normed, weight, weight_offset, IN_FP32: tl.constexpr, dtype: tl.constexpr):
    """`normed` (fp32) times the weight: in fp32, or, for a weight of x's dtype, rounded to that dtype first."""
    if IN_FP32:
        return normed * (weight.to(tl.float32) + weight_offset)
    return normed.to(dtype).to(tl.float32) * weight.to(tl.float32)


@triton.jit
def gate(z, SIGMOID: tl.constexpr):
    """Sigmoid or SiLU of z in fp32."""
    z = z.to(tl.float32)
    sigmoid = 1.0 / (1.0 + tl.exp(-z))
    if SIGMOID:
        return sigmoid
    return z * sigmoid
