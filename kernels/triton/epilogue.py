"""How a kernel writes what it has computed in fp32: one function for each form of the result."""

import triton
import triton.language as tl


@triton.jit
def put_rounded(ptrs, values, mask, CACHE: tl.constexpr = ""):
    """Round to the dtype of what is written, to nearest even."""
    tl.store(ptrs, values.to(ptrs.dtype.element_ty), mask=mask, cache_modifier=CACHE)
