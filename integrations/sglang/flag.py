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
FLAG = "--serving-ops"


def install(then: Callable[[], None]) -> None:
    """Add the flag to every parser that SGLang makes; `then` is called once it was given.

    Where this SGLang takes no hooks there is no flag, and the variable works without it.
    """
    try:
        from sglang.srt.plugins.hook_registry import HookRegistry, HookType
    except ImportError:
        return

    def set_and_hook() -> None:
        then()
        HookRegistry.apply_hooks()  # for models that this very process loads, as SGLang's one-batch bench does

    HookRegistry.register(TARGET, lambda _, parser: _add(parser, set_and_hook), HookType.AFTER)


def _add(parser: argparse.ArgumentParser, then: Callable[[], None]) -> None:
    if FLAG in parser._option_string_actions:  # the plugin was registered again
        return

    class Set(argparse.Action):
        def __call__(self, parser: Any, namespace: Any, value: Any, option: str | None = None) -> None:
            os.environ[settings.CHOICE.name] = value
            then()

    parser.add_argument(
        FLAG,
        action=Set,
        type=_known,
        default=argparse.SUPPRESS,
        metavar="MODE",
        help="off, auto, strict, or names of ops: which norms run on serving_ops (as the variable SERVING_OPS)",
    )


def _known(value: str) -> str:
    try:
        settings.CHOICE.read(value.strip().lower())
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{value!r} {error}") from error
    return value
