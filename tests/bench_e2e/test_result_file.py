"""The form of a result file: a line for each field, case, variant and engine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from serving_ops.bench_e2e.result_file import compact

RESULTS = Path(__file__).parents[2] / "bench_e2e" / "results"


def test_a_case_takes_one_line() -> None:
    result = {"device": "cpu", "versions": {}, "results": [{"shape": [1, 2], "times": {"eager": {"best": 1.0}}}]}
    lines = ["{", '"device": "cpu",', '"versions": {},', '"results": [']
    assert compact(result).splitlines()[:4] == lines
    assert compact(result).splitlines()[4:] == ['{"shape": [1, 2], "times": {"eager": {"best": 1.0}}}', "]", "}"]


def test_a_result_has_the_same_form_before_and_after_it_was_read() -> None:
    result = {
        "load": {"batch_sizes": (1, 16), "decode_steps": 96},
        "engines": {"native": [{"rounds": [{"tpot": 1.0}]}]},
    }
    assert compact(result) == compact(json.loads(compact(result)))


@pytest.mark.parametrize("file", sorted(RESULTS.glob("*.json")), ids=lambda file: file.stem)
def test_committed_results_are_in_the_compact_form(file: Path) -> None:
    assert file.read_text() == compact(json.loads(file.read_text()))
