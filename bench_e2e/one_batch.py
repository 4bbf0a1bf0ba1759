"""`python -m serving_ops.bench_e2e one-batch ...`: SGLang's one-batch bench, with plugins, which it never loads itself.

Every word behind `one-batch` is SGLang's; `SERVING_OPS` or `--serving-ops` says what is ours.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from typing import Any

WORKERS = ("latency_test", "correctness_test")
"""What the bench runs, in a new process for each rank where there are several."""

_own: dict[str, Any] = {}
"""SGLang's own workers, in the process in which they were covered."""


def main(argv: Sequence[str]) -> int:
    """Runs SGLang's bench with these words. Exit status 2 where SGLang is not there."""
    try:
        from sglang.benchmark import one_batch
        from sglang.srt.plugins import load_plugins
    except ImportError as error:
        print(f"SGLang's one-batch bench is not there: {error}", file=sys.stderr)
        return 2
    load_plugins()
    for name in WORKERS:
        _own[name] = getattr(one_batch, name)
        setattr(one_batch, name, functools.partial(with_plugins, name))
    sys.argv = ["one-batch", *argv]
    one_batch.cli_main()
    return 0


def with_plugins(name: str, *args: Any) -> Any:
    """One of SGLang's workers, once the plugins are loaded in its process, which may be new."""
    from sglang.benchmark import one_batch
    from sglang.srt.plugins import load_plugins

    load_plugins()
    worker = _own.get(name) or getattr(one_batch, name)
    return worker(*args)
