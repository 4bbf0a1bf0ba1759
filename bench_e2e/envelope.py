"""What every result says of its run: when, by which command, on which machine, with which versions."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from serving_ops.bench_e2e import environment, redact
from serving_ops.bench_e2e.arguments import model_label, preset_label


def of_run(command: str) -> dict[str, Any]:
    """`command` is as `environment.command_line` records it."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "versions": environment.versions(),
        "hardware": environment.hardware(),
    }


def of_served_model(chosen: argparse.Namespace, command: str, kind: str = "") -> dict[str, Any]:
    """The same with the model, and the result's name; `kind` goes into a name that the user did not choose."""
    label = Path(chosen.model).name if chosen.model else preset_label(chosen)
    mode = "eager" if chosen.eager else "compiled"
    return {
        **of_run(command),
        "name": chosen.name or f"{datetime.now(UTC):%Y%m%d-%H%M}-{kind}{chosen.engine}-{chosen.device}-{label}-{mode}",
        "engine": chosen.engine,
        "model": redact.value_of("model", model_label(chosen)),
        "device": chosen.device,
        "eager": chosen.eager,
    }
