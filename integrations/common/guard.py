"""How the plugins handle their own errors inside an engine: auto mode logs one line, and strict mode stops the engine.

`engine` is the engine's name, "vLLM" or "SGLang". In lower case it is the name of the package.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator

from serving_ops import settings

STRICT = "SERVING_OPS=strict:"


def reason_of(error: BaseException) -> str:
    """Return an error as a phrase for the log."""
    return str(error) or type(error).__name__


def strict_error(what: str, error: BaseException) -> RuntimeError:
    """Return what strict mode raises for an error. An error that strict mode raised keeps its message."""
    said = reason_of(error)
    return RuntimeError(said if said.startswith(STRICT) else f"{STRICT} {what}: {said}")


def put_in_place(engine: str, install: Callable[[], None], *, stop: type[BaseException] = RuntimeError) -> None:
    """Call `install` where `SERVING_OPS` is `auto` or `strict`; an error of it is one line in auto mode.

    Raises `stop` only in strict mode.
    """
    try:
        mode = settings.mode()
    except ValueError:  # `settings.report` has said so
        return
    if mode == "off":
        return
    try:
        install()
    except Exception as error:  # whatever a version of the engine does differently, it must start
        if mode == "strict":
            raise stop(str(strict_error(f"could not hook {engine}", error))) from error
        warn_off(engine, reason_of(error))


def warn_off(engine: str, reason: str) -> None:
    """Log one line that says that the plugin is off in this engine, and why."""
    version = getattr(sys.modules.get(engine.lower()), "__version__", "of unknown version")
    _logger(engine).warning("serving_ops is off: %s (%s %s)", reason, engine, version)


@contextlib.contextmanager
def unless_strict(engine: str, what: str) -> Iterator[None]:
    """Log an error raised in the block as one line that says what could not be done.

    Raises RuntimeError instead in strict mode.
    """
    try:
        yield
    except Exception as error:
        if settings.mode() == "strict":
            raise strict_error(f"could not {what}", error) from error
        _logger(engine).warning("serving_ops could not %s: %s", what, reason_of(error))
        _logger(engine).debug("serving_ops: details", exc_info=True)


def _logger(engine: str) -> logging.Logger:
    return logging.getLogger(f"{engine.lower()}.serving_ops")
