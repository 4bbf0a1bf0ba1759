"""What happens to an error of ours inside vLLM: one line in auto mode, and only strict mode stops the engine."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from serving_ops import settings
from serving_ops.integrations.common import guard
from serving_ops.integrations.common.guard import STRICT, reason_of, strict_error

__all__ = ["STRICT", "reason_of", "strict_error", "unless_strict", "warn_off"]

_logger = logging.getLogger("vllm.serving_ops")


def warn_off(reason: str) -> None:
    """The one line that says that nothing of ours is in this vLLM, and why."""
    guard.warn_off("vllm", "vLLM", reason)


@contextlib.contextmanager
def unless_strict(what: str) -> Iterator[None]:
    """An error inside is logged as a line that says what could not be done.

    Raises RuntimeError instead in strict mode.
    """
    try:
        yield
    except Exception as error:
        if settings.mode() == "strict":
            raise strict_error(f"could not {what}", error) from error
        _logger.warning("serving_ops could not %s: %s", what, reason_of(error))
        _logger.debug("serving_ops: details", exc_info=True)
