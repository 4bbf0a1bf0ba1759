"""Reads a result of any version in today's form. Results of version 1 had a form for each bench."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from serving_ops.bench_e2e.client import LABELS
from serving_ops.bench_e2e.envelope import SCHEMA
from serving_ops.bench_e2e.stats import RATIO_METHOD
from serving_ops.bench_e2e.step_load import StepLoad, typical

OF_EVERY_RESULT = ("schema", "kind", "date", "command", "device", "versions", "hardware")


def read(path: Path) -> dict[str, Any]:
    """Raises ValueError, with the path, for a file that is no result."""
    try:
        plain = json.loads(path.read_text())
        plain = plain if plain.get("schema") == SCHEMA else {**_upgraded(plain), "schema": 1}
        missing = [name for name in OF_EVERY_RESULT if name not in plain]
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no result of this bench: {error!r}") from error
    if missing:
        raise ValueError(f"{path} is no result of this bench: it has no {', '.join(missing)}")
    return dict(plain)


def _upgraded(plain: dict[str, Any]) -> dict[str, Any]:
    if plain.get("schema", 1) > SCHEMA:
        raise ValueError(f"schema {plain['schema']}, this version reads up to {SCHEMA}")
    if plain.get("kind") == "turns":
        return _step(plain)
    if "step_ms" in plain:
        return _training_steps(plain)
    if "results" in plain:
        return {**plain, "kind": "training" if "passes" in plain["results"][0] else "ops"}
    return _serve(plain)


def _mode(plain: dict[str, Any]) -> str:
    compiled = "compiled" if plain["engine"] == "vllm" else "CUDA graphs"
    return "eager" if plain["eager"] else compiled


def _serve(plain: dict[str, Any]) -> dict[str, Any]:
    asked, rounds = plain["load"], {name: variant["rounds"] for name, variant in plain["variants"].items()}
    count = len(next(iter(rounds.values())))
    method = (
        f"{asked['num_prompts']} requests a round, {asked['input_len']} tokens in, {asked['output_len']} out, "
        f"{asked['concurrency']} in flight; median over {count} round{'s' if count > 1 else ''} [lowest-highest]; "
        f"ratio: {RATIO_METHOD}."
    )
    pairs = {name: [{figure: entry[figure] for figure in LABELS} for entry in of] for name, of in rounds.items()}
    lines = {name: [entry["plugin_line"] for entry in of] for name, of in rounds.items()}
    form = {"kind": "serve", "mode": _mode(plain), "method": method, "labels": LABELS}
    return {**plain, **form, "pairs": pairs, "plugin_lines": lines}


def _step(plain: dict[str, Any]) -> dict[str, Any]:
    engines, asked = plain["engines"], StepLoad(**plain["load"])
    pairs = {name: [typical(run["rounds"]) for run in runs] for name, runs in engines.items()}
    lines = {name: [run["plugin_line"] for run in runs] for name, runs in engines.items()}
    first = next(iter(engines.values()))
    method = asked.method(len(first), len(first[0]["rounds"]))
    form = {"kind": "step", "mode": _mode(plain), "method": method, "labels": asked.labels}
    return {**plain, **form, "pairs": pairs, "plugin_lines": lines}


def _training_steps(plain: dict[str, Any]) -> dict[str, Any]:
    from serving_ops.bench_e2e import training_steps

    pairs = {name: [{training_steps.STEP: time} for time in times] for name, times in plain["step_ms"].items()}
    return {**plain, "kind": training_steps.KIND, **training_steps.described(plain), "pairs": pairs}
