"""What every result says of its run: when, by which command, on which machine, with which versions."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from serving_ops.bench_e2e import environment

SCHEMA = 2
OF_EVERY_RESULT = ("schema", "kind", "date", "command", "device", "versions", "hardware")


def of_run(kind: str, command: str, device: str) -> dict[str, Any]:
    """kind: the subcommand that measured. command: as `environment.command_line` records it."""
    return {
        "schema": SCHEMA,
        "kind": kind,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "device": device,
        "versions": environment.versions(),
        "hardware": environment.hardware(),
    }


def read(path: Path) -> dict[str, Any]:
    """A result that was saved. Raises ValueError, with the path, for a file that is none."""
    try:
        plain = json.loads(path.read_text())
        missing = [name for name in OF_EVERY_RESULT if name not in plain]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is no result of this bench: {error!r}") from error
    if missing or plain["schema"] != SCHEMA:
        raise ValueError(f"{path} is no result of this bench: it has no {', '.join(missing) or f'schema {SCHEMA}'}")
    return dict(plain)


def machine(run: dict[str, Any]) -> str:
    """The GPU, or the CPU where the run had none or did not use it."""
    hardware = run["hardware"]
    on_gpu = run["device"] == "cuda" and hardware["gpu"]
    return str(hardware["gpu"] if on_gpu else f"{hardware['cpu']}, {hardware['cores']} cores")
