"""The README's ratios are those of the committed results, and none has an interval that includes 1."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from serving_ops.bench_e2e import table

ROOT = Path(__file__).parents[2]
RATIO = r"\d\.\d{3} \[(\d\.\d{3})-(\d\.\d{3})\]"
RESULT = r"\[\S+\]\((bench_e2e/results/\S+\.json)\) \|$"
GAINS = [line for line in (ROOT / "README.md").read_text().splitlines() if re.search(RESULT, line)]


def test_the_readme_says_who_gains_in_at_most_eight_lines() -> None:
    assert 0 < len(GAINS) <= 8


@pytest.mark.parametrize("line", GAINS)
def test_a_gain_is_in_its_result_and_its_interval_excludes_1(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    (result,) = re.findall(RESULT, line)
    assert table.main([str(ROOT / result)]) == 0
    rendered = capsys.readouterr().out
    shown = list(re.finditer(RATIO, line))
    assert shown
    for ratio in shown:
        low, high = map(float, ratio.groups())
        assert low <= high < 1
        assert ratio.group() in rendered
