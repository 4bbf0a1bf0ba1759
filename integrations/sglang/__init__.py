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


def register() -> None:
    """Have serving_ops take SGLang's norms where `SERVING_OPS` is `auto` or `strict`; otherwise only add the flag.

    Raises SystemExit only where `SERVING_OPS=strict` and this SGLang cannot be hooked: of what a plugin raises, SGLang
    lets nothing else stop the start.
    """
    flag.install(_put_in_place)  # first: it must be known to the command line whatever the variable says
    settings.report(logging.getLogger("sglang.serving_ops"))
    _put_in_place()


def _put_in_place() -> None:
    guard.put_in_place("SGLang", _install, stop=SystemExit)


def _install() -> None:
    from serving_ops.integrations.sglang import startup

    startup.install()
