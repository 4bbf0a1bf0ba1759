"""What is made once is made once, though it fails."""

from __future__ import annotations

import pytest
from once import once


def test_a_failure_is_raised_again_and_not_repeated() -> None:
    asked: list[tuple[str, str]] = []

    @once
    def start(engine: str, *, mode: str) -> str:
        asked.append((engine, mode))
        if engine == "broken":
            raise AssertionError("it does not start")
        return engine

    for _ in range(3):
        with pytest.raises(AssertionError, match="does not start"):
            start("broken", mode="eager")
        assert start("dense", mode="eager") == "dense"
    assert asked == [("broken", "eager"), ("dense", "eager")]
