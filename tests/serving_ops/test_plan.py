"""Plans are pure functions of the size: no GPU needed to know what would be launched."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from serving_ops import plan, plan_rope

ROWS = [1, 2, 16, 24, 255, 256, 257, 512, 513, 768, 2048, 2049, 2560, 2561, 4096, 65536, 65537, 1449144, 2**31 - 1]


def quantized(size: int, itemsize: int, rows: int) -> plan.Plan | None:
    return plan.plan_gated(size, itemsize, rows, quantized=True)


def test_a_decode_row_that_is_a_head_has_a_warp_of_its_own() -> None:
    for rows in (1, 16, 24, 256):
        assert plan.plan_norm(128, 2, rows) == plan.Plan("tile", 128, 4, 4, overlap=True, max_rows=plan.FEW_ROWS)
        for plan_of in (plan.plan_gated, quantized):
            assert plan_of(128, 2, rows) == plan.Plan("tile", 128, 4, 4, overlap=True, max_rows=plan.GATED_FEW_ROWS)


def test_prefill_takes_tiles_of_rows() -> None:
    for rows in (65537, 1449144):
        for chosen in (plan.plan_norm(128, 2, rows), plan.plan_gated(128, 2, rows)):
            assert chosen is not None
            assert chosen.rows_per_program > 1


@pytest.mark.parametrize("size", [513, 896, 4095, 4096, 16384, 32768, 65536, 131072])
@pytest.mark.parametrize("itemsize", [2, 4])
def test_how_a_wide_row_is_summed_does_not_depend_on_the_rows(size: int, itemsize: int) -> None:
    plans = {plan.plan_norm(size, itemsize, rows) for rows in ROWS}
    assert len({(chosen.kernel, chosen.block_n, chosen.num_warps) for chosen in plans}) == 1


@pytest.mark.parametrize("size", [64, 128, 512, 896, 4095, 4096, 131072])
def test_every_count_of_rows_is_of_one_plan(size: int) -> None:
    limits = [plan.FEW_ROWS, plan.SOME_ROWS, plan.SOME_ELEMENTS // 512, plan.OVERLAP_ROWS]
    limits += [plan.GATED_FEW_ROWS, plan.GATED_SOME_ROWS, plan.GATED_MORE_ROWS]
    for rows in (*ROWS[:-1], *limits, *(limit + 1 for limit in limits), plan.MAX_ROWS):
        for plan_of in (plan.plan_norm, plan.plan_gated, quantized):
            chosen = plan_of(size, 2, rows)
            if chosen is not None:
                assert chosen.min_rows <= rows <= chosen.max_rows
                assert plan_of(size, 2, chosen.min_rows) == chosen == plan_of(size, 2, chosen.max_rows)


@pytest.mark.parametrize("size", [1, 3, 64, 100, 128, 511, 512, 513, 4095, 32768, 32769, 131072])
@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("rows", ROWS)
def test_every_plan_can_be_launched(size: int, itemsize: int, rows: int) -> None:
    for chosen in (plan.plan_norm(size, itemsize, rows), plan.plan_gated(size, itemsize, rows)):
        if chosen is None:
            assert size * itemsize > plan.ROW_MAX_BYTES // 2
            continue
        assert chosen.block_n & (chosen.block_n - 1) == 0
        assert chosen.kernel == "wide" or chosen.block_n >= size
        assert chosen.rows_per_program >= 1
        assert chosen.num_warps in (1, 2, 4, 8, 16, 32)


@pytest.mark.parametrize("size", [64, 128, 512, 896, 4096])
def test_prewarm_covers_every_plan(size: int) -> None:
    warmed = {plan.plan_norm(size, 2, rows) for rows in plan.rows_to_prewarm(size)}
    assert warmed == {plan.plan_norm(size, 2, rows) for rows in ROWS}
    for plan_of in (plan.plan_gated, quantized):
        assert {plan_of(size, 2, rows) for rows in plan.rows_to_prewarm(size)} == {
            plan_of(size, 2, rows) for rows in ROWS
        }


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("heads", [1, 9, 24, 40, 300, 3000])
def test_prewarm_uses_every_plan_of_a_rotation(heads: int, cached: bool) -> None:
    def plans(counts: Iterable[int]) -> set[plan.Plan]:
        return {plan_rope.plan_rope(128, tokens, heads, cached=cached) for tokens in counts}

    assert plans(range(1, 10000)) <= plans(plan_rope.tokens_to_prewarm(heads))
