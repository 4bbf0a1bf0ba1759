"""vLLM plugin: entry-point group `vllm.general_plugins`, target `serving_ops.integrations.vllm:register`.

vLLM calls `register` in every process it starts: the server, the engine core, each worker, and the process that
inspects model classes. It must be cheap, repeatable, and must not initialise CUDA.
"""

from __future__ import annotations

import logging

from serving_ops import settings
from serving_ops.integrations.common import guard
from serving_ops.integrations.common.record import Installed

installed = Installed()
"""What is in the vLLM of this process; features are the names of this package's modules."""


def register() -> None:
    """Put serving_ops behind vLLM's norms where `SERVING_OPS` is `auto` or `strict`; otherwise do nothing.

    Repeated calls change nothing. Raises RuntimeError only where `SERVING_OPS=strict`: vLLM does not start then.
    """
    settings.report(logging.getLogger("vllm.serving_ops"))
    guard.put_in_place("vLLM", _install)


def _install() -> None:
    from serving_ops.integrations.vllm import features

    features.install_all(strict=settings.mode() == "strict")
