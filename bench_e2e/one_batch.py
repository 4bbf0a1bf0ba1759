"""`python -m serving_ops.bench_e2e one-batch ...`: SGLang's one-batch bench, with plugins, which it never loads itself.

Every word behind `one-batch` is SGLang's; `SERVING_OPS` or `--serving-ops` says what is ours.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from typing import Any

_own: dict[str, Any] = {}
"""SGLang's own workers, in the process in which they were covered. Where there are several ranks, each is a new one."""


def main(argv: Sequence[str]) -> int:
    """Runs SGLang's bench with these words. Exit status 2 where SGLang is not there."""
    try:
        from sglang.benchmark import one_batch
    except ImportError as error:
        print(f"SGLang's one-batch bench is not there: {error}", file=sys.stderr)
        return 2
    with_plugins()
    for name in ("latency_test", "correctness_test"):
        _own[name] = getattr(one_batch, name)
        setattr(one_batch, name, functools.partial(with_plugins, name))
    sys.argv = ["one-batch", *argv]
    one_batch.cli_main()
    return 0


def with_plugins(name: str | None = None, *args: Any) -> Any:
    """One of SGLang's workers, once the plugins are loaded in its process, which may be new."""
    from sglang.benchmark import one_batch
    from sglang.srt.plugins import load_plugins

    load_plugins()
    return (_own.get(name) or getattr(one_batch, name))(*args) if name else None
