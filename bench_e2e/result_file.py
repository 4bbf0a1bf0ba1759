"""A result's file: what every result says of its run, how it is written, and read."""

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from serving_ops.bench_e2e import environment

SCHEMA = 2
OF_EVERY_RESULT = ("schema", "kind", "date", "command", "device", "versions", "hardware")
BROKEN = 3  # levels whose entries get a line each; of objects, one level fewer


def of_run(kind: str, words: Sequence[str], device: str) -> dict[str, Any]:
    """When, by which command, on which machine, with which versions. kind: the subcommand that measured."""
    return {
        "schema": SCHEMA,
        "kind": kind,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": environment.command_line(f"{environment.COMMAND} {kind}", words),
        "device": device,
        "versions": environment.versions(),
        "hardware": environment.hardware(),
    }


def shown_command(run: dict[str, Any]) -> str:
    """For a caption: without where the run wrote its files and found its caches, which changes no figure."""
    return re.sub(r"\bVLLM_CACHE_ROOT=\S+ | --(out|lock|name)[ =]\S+| --keep-logs\b", "", run["command"])


def machine(run: dict[str, Any]) -> str:
    """The GPU, or the CPU where the run had none or did not use it."""
    hardware = run["hardware"]
    on_gpu = run["device"] == "cuda" and hardware["gpu"]
    return str(hardware["gpu"] if on_gpu else f"{hardware['cpu']}, {hardware['cores']} cores")


def circumstances(run: dict[str, Any]) -> str:
    """Versions, machine and day, of a run of an engine."""
    engine, versions = run["engine"], run["versions"]
    return f"{engine} {versions[engine]}, torch {versions['torch']}, {machine(run)}, {run['date'][:10]}"


def read(path: Path) -> dict[str, Any]:
    """Raises ValueError, with the path, for a file that is no result."""
    try:
        plain = json.loads(path.read_text())
        missing = [name for name in OF_EVERY_RESULT if name not in plain]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is no result of this bench: {error!r}") from error
    if missing or plain["schema"] != SCHEMA:
        raise ValueError(f"{path} is no result of this bench: it has no {', '.join(missing) or f'schema {SCHEMA}'}")
    return dict(plain)


def save(result: Mapping[str, Any], path: Path) -> Path:
    """Writes a result; where that fails, to a new temporary folder. Returns where it lies."""
    text = compact(result)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    except OSError:  # the disk is full, or the folder is gone since the start
        path = Path(tempfile.mkdtemp(prefix="serving-ops-result-")) / path.name
        path.write_text(text)
    return path


def compact(result: Mapping[str, Any]) -> str:
    """JSON with a line for each field of the result, each case, and each pair or engine."""
    return _lines(result, 0) + "\n"


def _lines(value: Any, depth: int) -> str:
    is_object = isinstance(value, Mapping)
    held = list(value.values()) if is_object else value if isinstance(value, (list, tuple)) else []
    holds_others = any(isinstance(entry, (Mapping, list, tuple)) for entry in held)
    if depth and (not holds_others or depth >= BROKEN - is_object):
        return json.dumps(value)
    entries = [_lines(entry, depth + 1) for entry in held]
    if is_object:
        entries = [f"{json.dumps(key)}: {entry}" for key, entry in zip(value, entries, strict=True)]
    start, end = "{}" if is_object else "[]"
    return start + "\n" + ",\n".join(entries) + "\n" + end
