"""What happens to an error of ours inside SGLang: one line in auto mode, and only strict mode stops the engine."""

from __future__ import annotations

from serving_ops.integrations.common import guard
from serving_ops.integrations.common.guard import STRICT, reason_of, strict_error

__all__ = ["STRICT", "reason_of", "strict_error", "warn_off"]


def warn_off(reason: str) -> None:
    """The one line that says that nothing of ours is in this SGLang, and why."""
    guard.warn_off("sglang", "SGLang", reason)
