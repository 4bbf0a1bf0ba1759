"""What happens to an error of ours inside SGLang: one line in auto mode, and only strict mode stops the engine."""

from __future__ import annotations

import logging
import sys

STRICT = "SERVING_OPS=strict:"

_logger = logging.getLogger("sglang.serving_ops")


def reason_of(error: BaseException) -> str:
    """An error as a phrase for a person."""
    return str(error) or type(error).__name__


def strict_error(what: str, error: BaseException) -> RuntimeError:
    """What strict mode raises for an error; one that strict mode raised before stays as it is."""
    said = reason_of(error)
    return RuntimeError(said if said.startswith(STRICT) else f"{STRICT} {what}: {said}")


def warn_off(reason: str) -> None:
    """The one line that says that nothing of ours is in this SGLang, and why."""
    version = getattr(sys.modules.get("sglang"), "__version__", "of unknown version")
    _logger.warning("serving_ops is off: %s (SGLang %s)", reason, version)
