"""The JSON of a run: what was measured, on what, with which versions, by which command."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from serving_ops.bench_e2e import envelope, environment
from serving_ops.bench_e2e.ops.results import CaseResult
from serving_ops.bench_e2e.saving import save

FORMAT = 1


class Entrant(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str: ...


def make_report(
    device: str,
    command: str,
    contestants: Sequence[Entrant],
    absent: dict[str, str],
    results: Sequence[CaseResult],
    copy_tb_s: float | None,
) -> dict[str, Any]:
    run = envelope.of_run(command)
    return {
        "format": FORMAT,
        **run,
        "hardware": asdict(run["hardware"]),
        "device": device,
        "contestants": {contestant.name: contestant.version for contestant in contestants},
        "absent": absent,
        "copy_tb_s": copy_tb_s,
        "results": [result.to_json() for result in results],
    }


def write(report: dict[str, Any], path: Path) -> Path:
    return save(report, path)


def default_path(device: str, what: str = "ops") -> Path:
    name = environment.gpu_name() if device == "cuda" else None
    slug = re.sub(r"[^a-z0-9]+", "-", (name or device).lower()).strip("-")
    return Path("bench_results") / f"{what}-{slug}.json"
