"""vLLM plugin: entry-point group `vllm.general_plugins`, target `serving_ops.integrations.vllm:register`.

vLLM calls `register` in every process it starts: the server, the engine core, each worker, and the process that
inspects model classes. It must be cheap, repeatable, and must not initialise CUDA.
"""

from __future__ import annotations

import logging

from serving_ops import settings
from serving_ops.integrations.common import guard
from serving_ops.integrations.common.record import Installed

_logger = logging.getLogger("vllm.serving_ops")

installed = Installed()
"""What is in the vLLM of this process; features are the names of this package's modules."""


def register() -> None:
    """Put serving_ops behind vLLM's norms where `SERVING_OPS` is `auto` or `strict`; otherwise do nothing.

    Repeated calls change nothing. Raises RuntimeError only where `SERVING_OPS=strict`: vLLM does not start then.
    """
    settings.report(_logger)
    try:
        mode = settings.mode()
    except ValueError:  # in the report
        return
    if mode != "off":
        _install(strict=mode == "strict")


def _install(*, strict: bool) -> None:
    try:
        from serving_ops.integrations.vllm import features

        features.install_all(strict=strict)
    except Exception as error:
        if strict:
            raise guard.strict_error("could not register", error) from error
        guard.warn_off("vLLM", guard.reason_of(error))
