"""What happens to an error of ours inside vLLM: one line in auto mode, and only strict mode stops the engine."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator

from serving_ops import settings

STRICT = "SERVING_OPS=strict:"

_logger = logging.getLogger("vllm.serving_ops")


def reason_of(error: BaseException) -> str:
    """An error as a phrase for a person."""
    return str(error) or type(error).__name__


def strict_error(what: str, error: BaseException) -> RuntimeError:
    """What strict mode raises for an error; one that strict mode raised before stays as it is."""
    said = reason_of(error)
    return RuntimeError(said if said.startswith(STRICT) else f"{STRICT} {what}: {said}")


def warn_off(reason: str) -> None:
    """The one line that says that nothing of ours is in this vLLM, and why."""
    version = getattr(sys.modules.get("vllm"), "__version__", "of unknown version")
    _logger.warning("serving_ops is off: %s (vLLM %s)", reason, version)


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
