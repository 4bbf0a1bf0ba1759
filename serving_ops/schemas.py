"""The library that the operators are defined in, by `serving_ops.ops.registry`, `serving_ops.training` and plugins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

library = torch.library.Library("serving_ops", "DEF")

TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)


def schema_of(function: Callable[..., Any]) -> str:
    """Say a function's arguments and results, from its annotations, as the schema of an operator does."""
    return torch.library.infer_schema(function, mutates_args=()).replace("SymInt", "int")
