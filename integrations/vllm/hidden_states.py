"""Models that hand on the input of their first layer, as a draft model of EAGLE-3's kind or the user may ask.

vLLM hands on the tensor itself, and it is the residual of the first norm that adds: all of ours add in place.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

HANDED_ON = "its model hands on the input of its first layer"
"""Why such a model's norms stay vLLM's."""

LAYERS = "aux_hidden_state_layers"
"""The attribute of a model with the numbers of the layers whose input it hands on. vLLM sets it while it loads."""


def why_norms_stay(models: Iterable[torch.nn.Module]) -> str | None:
    """Return that a model hands on its first layer's input, or None. Those of later layers are sums that vLLM makes."""
    handed_on = (0 in (getattr(part, LAYERS, None) or ()) for model in models for part in model.modules())
    return HANDED_ON if any(handed_on) else None
