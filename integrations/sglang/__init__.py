"""SGLang plugin: an entry point that does nothing yet."""

from __future__ import annotations

import logging

from serving_ops import settings

_logger = logging.getLogger("sglang.serving_ops")


def register() -> None:
    """Say, where `SERVING_OPS` asks for more, that SGLang's norms stay SGLang's.

    Raises RuntimeError where `SERVING_OPS=strict`.
    """
    try:
        mode = settings.mode()
    except ValueError as error:
        _logger.error("serving_ops is off: %s", error)
        return
    if mode == "off":
        return
    message = "serving_ops does not support SGLang yet: every norm stays native"
    if mode == "strict":
        raise RuntimeError(f"SERVING_OPS=strict: {message}")
    _logger.warning(message)
