"""What becomes of an error of ours inside an engine: one line in auto mode; only strict mode stops the engine."""

from __future__ import annotations

import logging
import sys

STRICT = "SERVING_OPS=strict:"


def reason_of(error: BaseException) -> str:
    """An error as a phrase for a person."""
    return str(error) or type(error).__name__


def strict_error(what: str, error: BaseException) -> RuntimeError:
    """What strict mode raises for an error; one that strict mode raised before stays as it is."""
    said = reason_of(error)
    return RuntimeError(said if said.startswith(STRICT) else f"{STRICT} {what}: {said}")


def warn_off(package: str, engine: str, reason: str) -> None:
    """The one line that says that nothing of ours is in this engine, and why; `package` is its name to Python."""
    version = getattr(sys.modules.get(package), "__version__", "of unknown version")
    logging.getLogger(f"{package}.serving_ops").warning("serving_ops is off: %s (%s %s)", reason, engine, version)
