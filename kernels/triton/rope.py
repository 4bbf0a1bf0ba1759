"""`qk_norm_rope`: heads of one token normalised and rotated where they lie, and written to the KV cache.

A program takes some heads of q, or of k, or copies some of v to its cache. All of its heads are rotated by the same
cosines and sines. The two elements of a pair are in the same place of two tiles, or beside each other in one, so that a
rotation moves nothing between threads.
"""

import triton
import triton.language as tl
from serving_ops.kernels.triton.arithmetic import prefetch_row, tile_at, wait_for_kernel_before
from serving_ops.kernels.triton.finish import finish
from serving_ops.kernels.triton.variant import unspecialized


@triton.jit
def _for_each_head(row_ptr, columns, mask, HEADS: tl.constexpr, ALIGNED: tl.constexpr):
    """A row of the table, or a weight, once for each head: then every thread loads what it needs, in whole vectors, and
    nothing goes through shared memory."""
    ptrs = tile_at((row_ptr, 0, 0), 0, tl.arange(0, HEADS), columns, ALIGNED)
    return tl.load(ptrs, mask=mask[None, :], other=0.0)


@triton.jit
def _weighted(x, weight_ptr, columns, mask, rstd, weight_offset, WEIGHT_IN_FP32: tl.constexpr, ALIGNED: tl.constexpr):
    """Normalise, apply the weight's `columns`, and round to x's dtype."""
    weight = _for_each_head(weight_ptr, columns, mask, x.shape[0], ALIGNED)
    return finish(x.to(tl.float32) * rstd, weight, weight_offset, WEIGHT_IN_FP32, x.dtype).to(x.dtype)


LOG2_WIDEST = tl.constexpr(9)
"""Of the elements of a head: `serving_ops.plan_rope.MAX_SIZE`."""


@triton.jit
def _squares(x, HEADS: tl.constexpr):
    """The sum of each head's squares, by the tree of `pairwise_sum`."""
    WIDTH: tl.constexpr = x.shape[1]
    values = x.to(tl.float32) * x.to(tl.float32)
    for level in tl.static_range(LOG2_WIDEST):
        if WIDTH >> level > 1:
            values = tl.sum(tl.reshape(values, (HEADS, WIDTH >> (level + 1), 2)), axis=2)
    return tl.reshape(values, (HEADS,))


@triton.jit
def _positions(ptr, axis_stride, THREE: tl.constexpr):
    """A token's position: one, or for MRoPE three. All are asked for before the first is needed."""
    first = tl.load(ptr)
    second, third = first, first
    if THREE:
        second = tl.load(ptr + axis_stride)
        third = tl.load(ptr + 2 * axis_stride)
    return first, second, third


@triton.jit
def _cos_and_sin(
    positions,  # as of `_positions`
    table_ptr,
    table_row_stride,
    pairs,
    mask,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    SECTION_1: tl.constexpr,
    SECTION_2: tl.constexpr,
    SECTION_INTERLEAVED: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """(HEADS, pairs) each, in fp32. Three whole rows are read for MRoPE, so that loads are as wide as for one."""
    row_ptr = table_ptr + positions[0].to(tl.int64) * table_row_stride
    cos = _for_each_head(row_ptr, pairs, mask, HEADS, ALIGNED)
    sin = _for_each_head(row_ptr + HALF, pairs, mask, HEADS, ALIGNED)
    if SECTION_1 >= 0:
        for axis in tl.static_range(1, 3):
            row_ptr = table_ptr + positions[axis].to(tl.int64) * table_row_stride
            if SECTION_INTERLEAVED:
                here = (pairs % 3 == axis) & (pairs < 3 * (SECTION_1 if axis == 1 else SECTION_2))
            else:
                here = pairs >= (HALF - SECTION_1 - SECTION_2 if axis == 1 else HALF - SECTION_2)
            cos = tl.where(here[None, :], _for_each_head(row_ptr, pairs, mask, HEADS, ALIGNED), cos)
            sin = tl.where(here[None, :], _for_each_head(row_ptr + HALF, pairs, mask, HEADS, ALIGNED), sin)
    return cos.to(tl.float32), sin.to(tl.float32)


@triton.jit
def _reciprocal(block_size):
    """Of a block's size, for `_slot_start`: a division takes some 50 instructions, so k's runs before the wait."""
    return (tl.full((), 0xFFFFFFFF, tl.uint32) // block_size.to(tl.uint32)).to(tl.int64)


@triton.jit
def _slot_start(slot, paged, reciprocal):
    """The offset of a slot in the cache; of slot 0 for a negative one.

    paged: the size of a block, and the strides of blocks and of slots.
    reciprocal: of that size, rounded down, so that the block it gives is the slot's or the one before.
    """
    block_size, block_stride, slot_stride = paged
    slot = tl.maximum(slot, 0).to(tl.int32)
    block = (slot.to(tl.int64) * reciprocal >> 32).to(tl.int32)
    place = slot - block * block_size
    is_next = place >= block_size
    block = tl.where(is_next, block + 1, block)
    place = tl.where(is_next, place - block_size, place)
    return block.to(tl.int64) * block_stride + place.to(tl.int64) * slot_stride


@triton.jit
def _put_cached(cache_ptr, heads, head_stride, columns, values, mask, scale_ptr, ALIGNED: tl.constexpr):
    """Write heads to their slot, which starts at `cache_ptr`. FP8's conversion saturates."""
    BYTES: tl.constexpr = 16 * cache_ptr.dtype.element_ty.primitive_bitwidth // values.dtype.primitive_bitwidth
    ptrs = tile_at((cache_ptr, 0, head_stride), 0, heads, columns, ALIGNED, BYTES)
    if scale_ptr is not None:
        values = tl.math.div_rn(values.to(tl.float32), tl.zeros_like(values).to(tl.float32) + tl.load(scale_ptr))
    tl.store(ptrs, values.to(cache_ptr.dtype.element_ty), mask=mask)


@unspecialized
def qk_norm_rope_kernel(
    q_ptr,  # (num_tokens, num_q_heads, SIZE), written
    k_ptr,  # (num_tokens, num_kv_heads, SIZE), written
    v_ptr,  # like k, if CACHED
    positions_ptr,  # (num_tokens,), or (3, num_tokens) if SECTION_1 >= 0
    table_ptr,  # (positions, 2 * HALF), cosines and then sines
    q_weight_ptr,  # (SIZE,), if HAS_WEIGHT
    k_weight_ptr,  # (SIZE,), if HAS_WEIGHT
    key_cache_ptr,  # (blocks, block_size, num_kv_heads, SIZE), written, if CACHED
    value_cache_ptr,  # as key_cache, in its strides
    slots_ptr,  # (num_slots,), if CACHED
    k_scale_ptr,  # one, if SCALED
    v_scale_ptr,  # one, if SCALED
    num_q_heads: tl.int32,
    num_kv_heads: tl.int32,
    q_outer_stride: tl.int64,
    q_row_stride: tl.int64,
    k_outer_stride: tl.int64,
    k_row_stride: tl.int64,
    v_outer_stride: tl.int64,
    v_row_stride: tl.int64,
    positions_axis_stride: tl.int64,
    positions_token_stride: tl.int64,
    table_row_stride: tl.int64,
    num_slots: tl.int32,  # tokens that are cached
    block_size: tl.int32,
    cache_block_stride: tl.int64,
    cache_slot_stride: tl.int64,
    cache_head_stride: tl.int64,
    eps: tl.float32,
    weight_offset: tl.float32,
    SIZE: tl.constexpr,  # of a head
    HALF: tl.constexpr,  # pairs that are rotated
    BLOCK_HALF: tl.constexpr,
    BLOCK_REST: tl.constexpr,  # of the elements that are not; 0 for none
    BLOCK_SIZE: tl.constexpr,
    HEADS: tl.constexpr,  # of a program
    NEOX: tl.constexpr,
    SECTION_1: tl.constexpr,  # pairs that the second and the third position rotate; -1 for one position
    SECTION_2: tl.constexpr,
    SECTION_INTERLEAVED: tl.constexpr,
    ALIGNED: tl.constexpr,  # every half of a head, of a row of the table and of a weight starts on 16 bytes
    HAS_WEIGHT: tl.constexpr,
    WEIGHT_IN_FP32: tl.constexpr,
    CACHED: tl.constexpr,
    SCALED: tl.constexpr,
    PDL: tl.constexpr,
    OVERLAP: tl.constexpr,  # the grid leaves room for the next
):
    token = tl.program_id(0)
    block = tl.program_id(1)
    if HAS_WEIGHT and BLOCK_SIZE >= 64:
        prefetch_row(q_weight_ptr, SIZE, BLOCK_SIZE, PDL, OVERLAP)
        prefetch_row(k_weight_ptr, SIZE, BLOCK_SIZE, PDL, OVERLAP)
    positions_ptr += token.to(tl.int64) * positions_token_stride
    slots_ptr += token
    is_slot = token < num_slots
    of_q = (num_q_heads + HEADS - 1) // HEADS
    of_k = (num_kv_heads + HEADS - 1) // HEADS
    is_q = block < of_q
    paged = (block_size, cache_block_stride, cache_slot_stride)
    if CACHED and block >= of_q + of_k:
        heads = (block - of_q - of_k) * HEADS + tl.arange(0, HEADS)
        columns = tl.arange(0, BLOCK_SIZE)
        mask = (heads < num_kv_heads)[:, None] & (columns < SIZE)[None, :]
        heads = heads.to(tl.int64)
        v_tile = tile_at((v_ptr, v_outer_stride, v_row_stride), token.to(tl.int64), heads, columns, ALIGNED)
        scale_ptr = v_scale_ptr if SCALED else None
        wait_for_kernel_before(PDL, OVERLAP)
        slot = tl.load(slots_ptr, mask=is_slot, other=-1)
        v = tl.load(v_tile, mask=mask, other=0.0)
        cache_ptr = value_cache_ptr + _slot_start(slot, paged, _reciprocal(block_size))
        mask &= (heads < tl.where(slot < 0, 0, num_kv_heads))[:, None]
        _put_cached(cache_ptr, heads, cache_head_stride, columns, v, mask, scale_ptr, ALIGNED)
        return
    reciprocal = tl.full((), 0, tl.int64)
    if is_q:
        x_ptr, weight_ptr = q_ptr + token.to(tl.int64) * q_outer_stride, q_weight_ptr
        head_stride, num_heads, first = q_row_stride, num_q_heads, block * HEADS
    else:
        x_ptr, weight_ptr = k_ptr + token.to(tl.int64) * k_outer_stride, k_weight_ptr
        head_stride, num_heads, first = k_row_stride, num_kv_heads, (block - of_q) * HEADS
        if CACHED:
            reciprocal = _reciprocal(block_size)
    heads = first + tl.arange(0, HEADS)
    is_head = (heads < num_heads)[:, None]
    heads = heads.to(tl.int64)
    pairs = tl.arange(0, BLOCK_HALF)
    is_pair = pairs < HALF
    mask = is_head & is_pair[None, :]
    if NEOX:
        a_tile = tile_at((x_ptr, 0, head_stride), 0, heads, pairs, ALIGNED)
        b_tile = tile_at((x_ptr + HALF, 0, head_stride), 0, heads, pairs, ALIGNED)
    else:
        both = tl.arange(0, 2 * BLOCK_HALF)
        both_tile = tile_at((x_ptr, 0, head_stride), 0, heads, both, ALIGNED)
        both_mask = is_head & (both < 2 * HALF)[None, :]
    if BLOCK_REST > 0:
        rest = tl.arange(0, BLOCK_REST)
        is_rest = rest < SIZE - 2 * HALF
        rest_mask = is_head & is_rest[None, :]
        rest_tile = tile_at((x_ptr + 2 * HALF, 0, head_stride), 0, heads, rest, ALIGNED)
    wait_for_kernel_before(PDL, OVERLAP)
    positions = _positions(positions_ptr, positions_axis_stride, SECTION_1 >= 0)
    if CACHED:
        slot = tl.load(slots_ptr, mask=is_slot, other=-1)
    if NEOX:
        a = tl.load(a_tile, mask=mask, other=0.0)
        b = tl.load(b_tile, mask=mask, other=0.0)
    else:
        ab = tl.load(both_tile, mask=both_mask, other=0.0)
    if BLOCK_REST > 0:
        c = tl.load(rest_tile, mask=rest_mask, other=0.0)
    cos, sin = _cos_and_sin(
        positions, table_ptr, table_row_stride, pairs, is_pair,
        HEADS, HALF, SECTION_1, SECTION_2, SECTION_INTERLEAVED, ALIGNED,
    )  # fmt: skip
    if HAS_WEIGHT:
        squares = _squares(a, HEADS) + _squares(b, HEADS) if NEOX else _squares(ab, HEADS)
        if BLOCK_REST > 0:
            squares += _squares(c, HEADS)
        rstd = tl.rsqrt(squares / SIZE + eps)[:, None]
        if NEOX:
            a = _weighted(a, weight_ptr, pairs, is_pair, rstd, weight_offset, WEIGHT_IN_FP32, ALIGNED)
            b = _weighted(b, weight_ptr + HALF, pairs, is_pair, rstd, weight_offset, WEIGHT_IN_FP32, ALIGNED)
        else:
            ab = _weighted(ab, weight_ptr, both, both < 2 * HALF, rstd, weight_offset, WEIGHT_IN_FP32, ALIGNED)
        if BLOCK_REST > 0:
            c = _weighted(c, weight_ptr + 2 * HALF, rest, is_rest, rstd, weight_offset, WEIGHT_IN_FP32, ALIGNED)
            tl.store(rest_tile, c, mask=rest_mask)
    dtype: tl.constexpr = q_ptr.dtype.element_ty
    if not NEOX:
        a, b = tl.split(tl.reshape(ab, (HEADS, BLOCK_HALF, 2)))
    a, b = a.to(tl.float32), b.to(tl.float32)
    a, b = (a * cos - b * sin).to(dtype), (b * cos + a * sin).to(dtype)
    if NEOX:
        tl.store(a_tile, a, mask=mask)
        tl.store(b_tile, b, mask=mask)
    else:
        ab = tl.reshape(tl.join(a, b), (HEADS, 2 * BLOCK_HALF))
        tl.store(both_tile, ab, mask=both_mask)
    if CACHED:
        is_cached = (heads < tl.where(is_q | (slot < 0), 0, num_heads))[:, None]
        key_ptr = key_cache_ptr + _slot_start(slot, paged, reciprocal)
        scale_ptr = k_scale_ptr if SCALED else None
        if NEOX:
            _put_cached(key_ptr, heads, cache_head_stride, pairs, a, mask & is_cached, scale_ptr, ALIGNED)
            _put_cached(key_ptr + HALF, heads, cache_head_stride, pairs, b, mask & is_cached, scale_ptr, ALIGNED)
        else:
            _put_cached(key_ptr, heads, cache_head_stride, both, ab, both_mask & is_cached, scale_ptr, ALIGNED)
        if BLOCK_REST > 0:
            rest_ptr = key_ptr + 2 * HALF
            _put_cached(rest_ptr, heads, cache_head_stride, rest, c, rest_mask & is_cached, scale_ptr, ALIGNED)
