"""What describes a layer is refused where it is written, not when its kernel is prewarmed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import serving_ops
from serving_ops import NormSpec, RopeSpec


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [("size", 0, "at least 1"), ("size", -128, "at least 1"), ("heads", 0, "at least 1"), ("device", "cuda", "device")],
)
def test_another_value_is_refused_by_name(field: str, value: Any, allowed: str) -> None:
    given = {"op": "rms_norm", "size": 128, "dtype": torch.bfloat16, "weight_dtype": None}
    with pytest.raises(ValueError, match=rf"{field} is .*{value}.*: it must be .*{allowed}"):
        NormSpec(**{**given, "device": torch.device("cpu"), field: value})


def test_sections_may_be_a_list_as_configurations_have_them() -> None:
    given = {"size": 64, "dtype": torch.bfloat16, "weight_dtype": None, "device": torch.device("cpu")}
    spec, same = (
        NormSpec("qk_norm_rope", **given, rotation=RopeSpec(mrope_section=section))
        for section in ([16, 8, 8], (16, 8, 8))
    )
    assert spec == same
    assert serving_ops.prewarm([spec, same]).warmed == [spec]
