"""How a kernel writes what it has computed: one function for each form of the result.

A quantized result starts from values that are rounded to x's dtype, so that it has the bits of a norm followed by a
quantization. A scale is amax / 448 (FP8 E4M3) or amax / 127 (INT8). It is at least `TOKEN_SCALE_FLOOR` for FP8 with a
scale a row, has no floor for INT8 with an fp32 scale a row, and is otherwise at least that of `AMAX_FLOOR`. Values are
divided by the scale; INT8 with an fp32 scale a row is multiplied by 127 / amax, and FP8 with a given scale by its
reciprocal. All divisions are rounded correctly. NaN makes the scale NaN, and is 0 in INT8.
"""

import triton
import triton.language as tl

FP32, POWER_OF_2, UE8M0 = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
"""Forms of a scale: as computed; rounded up to a power of 2; that power's exponent, four packed in an int32."""

GIVEN, WHOLE_ROW = tl.constexpr(0), tl.constexpr(-1)
"""SCALED, the columns of one scale, where that is no number of columns: one scale is the caller's; each row has one."""

FP8_MAX = tl.constexpr(448.0)
INT8_MAX = tl.constexpr(127.0)
AMAX_FLOOR = tl.constexpr(1e-10)
TOKEN_SCALE_FLOOR = tl.constexpr(1.0 / (448.0 * 512.0))
_INTEGERS = tl.constexpr(12582912.0)  # 1.5 * 2**23: fp32 has no fractions there, so adding it rounds to nearest even

NO_HINT = tl.constexpr("")  # Triton 3.6 does not compile a plain text as a default


@triton.jit
def put_rounded(ptrs, values, mask, CACHE: tl.constexpr = NO_HINT):
    """Round to the dtype of what is written, to nearest even."""
    tl.store(ptrs, values.to(ptrs.dtype.element_ty), mask=mask, cache_modifier=CACHE)


@triton.jit
def larger(a, b):
    """The larger of two; NaN where one is."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def largest(values, axis: tl.constexpr):
    """The largest magnitude along an axis; NaN where there is one. Magnitudes are ordered as their bits are, and NaN
    above them. A warp compares integers in one instruction."""
    bits = tl.abs(values.to(tl.float32)).to(tl.int32, bitcast=True)
    return tl.max(bits, axis).to(tl.float32, bitcast=True)


@triton.jit
def _largest_of_each(groups, IN_A_ROW: tl.constexpr):
    """The same of each group. In a long row half a warp has a group, and compares floats faster."""
    if IN_A_ROW:
        amax = tl.reduce(tl.abs(groups.to(tl.float32)), 1, larger)
    else:
        amax = largest(groups, 1)
    return amax


@triton.jit
def _exact_quotient(values, DIVISOR: tl.constexpr):
    """values / DIVISOR in fp32, rounded correctly where it is a normal number, and infinite for infinity."""
    RECIPROCAL: tl.constexpr = 1.0 / DIVISOR
    quotient = values * RECIPROCAL
    quotient = tl.fma(tl.fma(-quotient, DIVISOR + tl.zeros_like(values), values), RECIPROCAL, quotient)
    return tl.where(values == float("inf"), values, quotient)


@triton.jit
def scale_of(amax, dtype: tl.constexpr, SCALED: tl.constexpr, FORM: tl.constexpr):
    """The scale in fp32 of values of at most `amax`."""
    if dtype == tl.int8:
        if SCALED == WHOLE_ROW and FORM == FP32:
            scale = tl.math.div_rn(amax, INT8_MAX)
        else:
            scale = _exact_quotient(larger(amax, AMAX_FLOOR), INT8_MAX)
    elif SCALED == WHOLE_ROW:
        scale = larger(_exact_quotient(amax, FP8_MAX), TOKEN_SCALE_FLOOR)
    else:
        scale = _exact_quotient(larger(amax, AMAX_FLOOR), FP8_MAX)
    if FORM != FP32:
        bits = scale.to(tl.int32, bitcast=True)
        power = ((bits + 0x7FFFFF) & 0x7F800000).to(tl.float32, bitcast=True)
        scale = tl.where(scale == scale, power, scale)
    return scale


@triton.jit
def divided(values, scale, FORM: tl.constexpr):
    """values / scale in fp32, rounded correctly, for a scale of `scale_of`: a division a scale, not one an element."""
    finite = tl.where(scale == float("inf"), 0.0, scale)  # 0 leaves a quotient by infinity as it is
    reciprocal = 1.0 / scale
    reciprocal = tl.fma(tl.fma(-finite, reciprocal, 1.0), reciprocal, reciprocal)
    values = values.to(tl.float32)
    quotient = values * reciprocal
    if FORM == FP32:
        quotient = tl.fma(-tl.fma(quotient, finite, -values), reciprocal, quotient)  # so that -0 stays -0
    return quotient


@triton.jit
def scaled(values, amax, scale, dtype: tl.constexpr, SCALED: tl.constexpr, FORM: tl.constexpr):
    """Values of at most `amax` in units of the scale that `scale_of` makes of it."""
    if dtype == tl.int8 and SCALED == WHOLE_ROW and FORM == FP32:
        quotient = values.to(tl.float32) * tl.where(amax == 0.0, 0.0, tl.math.div_rn(INT8_MAX, amax))
    else:
        quotient = divided(values, scale, FORM)
    return quotient


@triton.jit
def scaled_by_given(values, scale, dtype: tl.constexpr):
    """Values in units of a scale of any size. The division for INT8 is rounded correctly for scales of 2**-60 to 2**60,
    up to where results saturate, and otherwise within two units in the last place."""
    values = values.to(tl.float32)
    if dtype == tl.int8:
        exact = divided(values, scale, FP32)
        exact_below = tl.where((scale > 2.0**-60) & (scale < 2.0**60), 1024.0, 0.0)
        quotient = tl.where(tl.abs(exact) < exact_below, exact, values / scale)
    else:
        quotient = values * tl.math.div_rn(1.0, scale)
    return quotient


@triton.jit
def put_quantized(ptrs, quotients, mask, SATURATE: tl.constexpr, CACHE: tl.constexpr = NO_HINT):
    """Round to nearest even. FP8's conversion saturates; SATURATE: quotients may exceed the range of INT8."""
    if ptrs.dtype.element_ty == tl.int8:
        numbers = tl.where(quotients == quotients, quotients, 0.0)
        if SATURATE:
            numbers = tl.clamp(numbers, -128.0, 127.0)
        values = (numbers + _INTEGERS).to(tl.int32, bitcast=True).to(tl.int8)
    else:
        values = quotients.to(tl.float8e4nv)
    tl.store(ptrs, values, mask=mask, cache_modifier=CACHE)


@triton.jit
def _exponent(scale):
    return (scale.to(tl.int32, bitcast=True) >> 23) & 0xFF


@triton.jit
def put_scales(
    scales,  # a pointer, and the strides of rows and of groups
    values,  # (ROWS * GROUPS,)
    first_row,
    num_rows,
    num_groups,  # of a row; the rest of GROUPS are padding
    GROUPS: tl.constexpr,
    FORM: tl.constexpr,
):
    """Write the scales of rows. For UE8M0 a word holds four groups and the strides count words; bytes of a row's last
    word that have no group are zero."""
    scales_ptr, row_stride, group_stride = scales
    LANES: tl.constexpr = min(GROUPS, 4) if FORM == UE8M0 else 1
    WORDS: tl.constexpr = GROUPS // LANES
    if FORM == UE8M0:
        group = tl.arange(0, values.shape[0]) % GROUPS
        exponents = tl.where(group < num_groups, _exponent(values), 0) << (group % LANES * 8)
        values = tl.sum(tl.reshape(exponents, (values.shape[0] // LANES, LANES)), axis=1)
    place = tl.arange(0, values.shape[0])
    row = first_row + place // WORDS
    word = place % WORDS
    mask = (row < num_rows) & (word * LANES < num_groups)
    tl.store(scales_ptr + row * row_stride + word * group_stride, values, mask=mask)


@triton.jit
def quantize_groups(
    q_ptrs,  # like values
    values,  # (BLOCK_N,) or (ROWS, BLOCK_N), rounded to x's dtype; zero or NaN outside the mask
    mask,  # like values
    first_row,  # int64
    num_rows,
    scales,  # as for `put_scales`
    num_columns,  # of values that are more than padding
    SCALED: tl.constexpr,
    FORM: tl.constexpr,
    CACHE: tl.constexpr = NO_HINT,
):
    """Quantize with a scale every SCALED columns, and write the scales."""
    BLOCK_N: tl.constexpr = values.shape[-1]
    WIDTH: tl.constexpr = BLOCK_N if SCALED == WHOLE_ROW else SCALED
    parts = tl.reshape(values, (values.numel // WIDTH, WIDTH))
    dtype: tl.constexpr = q_ptrs.dtype.element_ty
    amax = _largest_of_each(parts, len(values.shape) == 1)
    of_groups = scale_of(amax, dtype, SCALED, FORM)
    quotients = scaled(parts, amax[:, None], of_groups[:, None], dtype, SCALED, FORM)
    put_quantized(q_ptrs, tl.reshape(quotients, values.shape), mask, False, CACHE)
    num_scales = 1 if SCALED == WHOLE_ROW else num_columns // SCALED
    put_scales(scales, of_groups, first_row, num_rows, num_scales, BLOCK_N // WIDTH, FORM)


@triton.jit
def put_scale(scale_ptr, scale, FORM: tl.constexpr):
    """Write the one scale of a row."""
    tl.store(scale_ptr, _exponent(scale) if FORM == UE8M0 else scale)


@triton.jit
def put_quantized_rows(
    normed_ptrs,  # like values, or None
    q_ptrs,  # like values
    values,  # (BLOCK_N,) or (ROWS, BLOCK_N), rounded to x's dtype; zero or NaN outside the mask
    mask,  # like values
    first_row,  # int64
    num_rows,
    scales,  # as for `put_scales`; a pointer to one, read, if SCALED is GIVEN
    num_columns,  # of values that are more than padding
    SCALED: tl.constexpr,
    FORM: tl.constexpr,
):
    """Write whole rows, or one group of each: as they are, quantized, and their scales unless one is given."""
    scales_ptr, scales_row_stride, _scales_group_stride = scales
    if normed_ptrs is not None:
        tl.store(normed_ptrs, values, mask=mask)
    dtype: tl.constexpr = q_ptrs.dtype.element_ty
    if SCALED == GIVEN:
        put_quantized(q_ptrs, scaled_by_given(values, tl.load(scales_ptr), dtype), mask, True)
    elif SCALED == WHOLE_ROW and len(values.shape) == 1:
        amax = largest(values, 0)
        scale = scale_of(amax, dtype, WHOLE_ROW, FORM)
        put_quantized(q_ptrs, scaled(values, amax, scale, dtype, WHOLE_ROW, FORM), mask, False)
        put_scale(scales_ptr + first_row * scales_row_stride, scale, FORM)
    else:
        quantize_groups(q_ptrs, values, mask, first_row, num_rows, scales, num_columns, SCALED, FORM)
