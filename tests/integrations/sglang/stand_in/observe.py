"""A plugin beside ours: what ran in the scheduler process, written before each forward pass returns.

SGLang has no way to ask a scheduler about another plugin's state that all its versions share.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

FORWARD = "sglang.srt.model_executor.model_runner.ModelRunner.forward"


def register() -> None:
    """Observe into the file that `OBSERVE` names; with `HIDE_LIBRARY`, as if the C++ library had not been built.

    With `AS_ON_A_GPU`, a quantized model is served as in `as_on_a_gpu`.
    """
    if "AS_ON_A_GPU" in os.environ:
        import as_on_a_gpu

        as_on_a_gpu.register()
    if "HIDE_LIBRARY" in os.environ:
        from serving_ops import extension

        extension._library, extension._why_missing = None, "the C++ library was not built"
    if "OBSERVE" in os.environ:
        from sglang.srt.plugins.hook_registry import HookRegistry, HookType

        HookRegistry.register(FORWARD, _after_forward, HookType.AFTER)


def _after_forward(result: Any, runner: Any, *args: Any, **kwargs: Any) -> None:
    counters = sys.modules.get("serving_ops.counters")
    switched = Counter(type(layer).__name__ for layer in runner.model.modules() if "sglangs_forward" in vars(layer))
    state = {"pid": os.getpid(), "switched": switched, "calls": counters.snapshot() if counters else None}
    lines = Path(os.environ["OBSERVE"])
    with lines.open("a") as file:
        file.write(json.dumps(state) + "\n")
