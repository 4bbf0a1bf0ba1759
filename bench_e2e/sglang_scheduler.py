"""A plugin of SGLang's that lets the bench ask a scheduler for device times.

The bench puts it on the path of the engines that it starts, and of no other.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from serving_ops.bench_e2e.device_time import ask_own_gpu

NAME = "serving_ops_bench"
METHOD = "serving_ops_bench"
"""Of the scheduler, for `Engine.collective_rpc`."""


def register() -> None:
    """SGLang calls this in each of its processes."""
    from sglang.srt.managers.scheduler import Scheduler

    setattr(Scheduler, METHOD, _answer)


def _answer(scheduler: Any, question: str, answers: str) -> None:
    Path(answers, str(os.getpid())).write_text(json.dumps(ask_own_gpu(scheduler, question)))


def write_entry_point(folder: Path) -> Path:
    """A folder that makes SGLang find this plugin once it is on PYTHONPATH."""
    information = folder / f"{NAME}-1.0.dist-info"
    information.mkdir(parents=True, exist_ok=True)
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {NAME}\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(f"[sglang.srt.plugins]\n{NAME} = {__name__}:register\n")
    return folder
