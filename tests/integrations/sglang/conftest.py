"""SGLang's engine on CPU, serving the vLLM tests' dense model, in fresh processes; one run is shared by all tests."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import sglang_versions
from sglang_versions import run

HERE = Path(__file__).parent
MODELS = HERE.parent / "vllm" / "models.py"


@dataclass(frozen=True)
class Served:
    """What one engine run gave: how it ended, its output, serve_tokens.py's JSON and the scheduler's last state."""

    returncode: int
    output: str
    result: dict[str, Any]
    scheduler: dict[str, Any]

    def start_up_lines(self) -> list[str]:
        return re.findall(r"serving_ops \d\S* \(.*", self.output)


def _last_json(file: Path) -> dict[str, Any]:
    lines = file.read_text().splitlines() if file.is_file() else []
    return json.loads(lines[-1]) if lines else {}


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Served]:
    """served(version, switch): SERVING_OPS=switch; options of the engine by keyword."""
    scratch = tmp_path_factory.mktemp("sglang")

    @cache
    def model() -> Path:
        done = run([str(MODELS), "dense", str(scratch / "dense")], {"PYTHONSAFEPATH": "1"})
        assert done.returncode == 0, done.stdout[-3000:]
        return scratch / "dense"

    @cache
    def serve(version: str, switch: str, **options: Any) -> Served:
        files = scratch / f"{version}-{switch}-{len(list(scratch.iterdir()))}"
        files.mkdir()
        result, state = files / "result.json", files / "scheduler.jsonl"
        environment = sglang_versions.environment(version) | {"SERVING_OPS": switch, "OBSERVE": str(state)}
        command = [str(HERE / "serve_tokens.py"), str(model()), str(result), json.dumps(options)]
        done = run(command, environment)
        return Served(done.returncode, done.stdout, _last_json(result), _last_json(state))

    return serve
