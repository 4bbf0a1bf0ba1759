"""`--serving-ops MODE` on SGLang's command lines: sugar for the environment variable.

SGLang reads its arguments in the launcher, behind the plugins there; the schedulers, where the norms are, start after
that and inherit the variable.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any

from serving_ops import settings

TARGET = "sglang.srt.server_args.ServerArgs.add_cli_args"
VARIABLE = "SERVING_OPS"
FLAG = "--serving-ops"


def install(then: Callable[[], None]) -> None:
    """Add the flag to every parser that SGLang makes; `then` is called once it was given.

    Where this SGLang takes no hooks there is no flag, and the variable works without it.
    """
    try:
        from sglang.srt.plugins.hook_registry import HookRegistry, HookType
    except ImportError:
        return
    HookRegistry.register(TARGET, lambda _, parser: _add(parser, then), HookType.AFTER)


def _add(parser: argparse.ArgumentParser, then: Callable[[], None]) -> None:
    if FLAG in parser._option_string_actions:  # the plugin was registered again
        return

    class Set(argparse.Action):
        def __call__(self, parser: Any, namespace: Any, value: Any, option: str | None = None) -> None:
            _choose(self, str(value))
            then()

    parser.add_argument(
        FLAG,
        action=Set,
        default=argparse.SUPPRESS,
        metavar="MODE",
        help="off, auto, strict, or names of ops: which norms run on serving_ops (as the variable SERVING_OPS)",
    )


def _choose(action: argparse.Action, value: str) -> None:
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = value
    try:
        settings.mode()
    except ValueError as error:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before
        raise argparse.ArgumentError(action, str(error)) from error
