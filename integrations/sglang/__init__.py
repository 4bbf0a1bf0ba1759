"""SGLang plugin: entry-point group `sglang.srt.plugins`, target `serving_ops.integrations.sglang:register`.

SGLang calls `register` in every process it starts: the launcher, the engine and each scheduler. Norms live in the
schedulers alone, so all that is put in place here is one hook, on the method that loads the model, and the flag
`--serving-ops`, which may ask for it.
"""

from __future__ import annotations

import logging

from serving_ops import settings
from serving_ops.integrations.common import guard
from serving_ops.integrations.sglang import flag

_logger = logging.getLogger("sglang.serving_ops")


def register() -> None:
    """Have serving_ops take SGLang's norms where `SERVING_OPS` is `auto` or `strict`; otherwise only add the flag.

    Raises SystemExit only where `SERVING_OPS=strict` and this SGLang cannot be hooked: of what a plugin raises, SGLang
    lets nothing else stop the start.
    """
    flag.install(_install_as_chosen)  # first: it must be known to the command line whatever the variable says
    settings.report(_logger)
    try:
        mode = settings.mode()
    except ValueError:  # in the report
        return
    if mode != "off":
        _install(strict=mode == "strict")


def _install_as_chosen() -> None:
    """Behind the flag: the hook is for models that this very process loads, as SGLang's one-batch bench does."""
    from sglang.srt.plugins.hook_registry import HookRegistry

    if settings.mode() != "off":
        _install(strict=settings.mode() == "strict")
        HookRegistry.apply_hooks()


def _install(*, strict: bool) -> None:
    try:
        from serving_ops.integrations.sglang import startup

        startup.install()
    except Exception as error:  # whatever a version of SGLang does differently, the engine must start
        if strict:
            raise SystemExit(str(guard.strict_error("could not hook SGLang", error))) from error
        guard.warn_off("SGLang", guard.reason_of(error))
