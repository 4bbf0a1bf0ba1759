"""What every result says of its run: when, by which command, on which machine, with which versions."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from serving_ops.bench_e2e import environment

SCHEMA = 2


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


def machine(run: dict[str, Any]) -> str:
    """The GPU, or the CPU where the run had none or did not use it."""
    hardware = run["hardware"]
    on_gpu = run["device"] == "cuda" and hardware["gpu"]
    return str(hardware["gpu"] if on_gpu else f"{hardware['cpu']}, {hardware['cores']} cores")
