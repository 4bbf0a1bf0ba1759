"""SGLang's engine on CPU, serving the vLLM tests' small models, in fresh processes; one run is shared by all tests."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sglang_versions
from once import once
from sglang_versions import run

HERE = Path(__file__).parent
WRITE = {
    "dense": [str(HERE.parent / "vllm" / "models.py"), "dense"],
    "dense_int8": [str(HERE.parent / "vllm" / "models.py"), "dense_int8"],
    "hybrid": [str(HERE / "hybrid_model.py")],
}


@dataclass(frozen=True)
class Served:
    """What one engine run gave: how it ended, its output, sglang_tokens.py's JSON and the scheduler's last state."""

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
def written_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """written_model(name): a checkpoint."""
    scratch = tmp_path_factory.mktemp("models")

    @once
    def write(name: str) -> Path:
        done = run([*WRITE[name], str(scratch / name)], {})
        assert done.returncode == 0, done.stdout[-3000:]
        return scratch / name

    return write


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory, written_model: Callable[[str], Path]) -> Callable[..., Served]:
    """served(model, version, switch): one of WRITE, the value of SERVING_OPS; other variables by name."""
    scratch = tmp_path_factory.mktemp("sglang")

    @once
    def serve(model: str, version: str, switch: str, **more: str) -> Served:
        files = scratch / f"{model}-{version}-{switch}-{len(more)}"
        files.mkdir()
        result, state = files / "result.json", files / "scheduler.jsonl"
        environment = sglang_versions.environment(version) | {"SERVING_OPS": switch, "OBSERVE": str(state)} | more
        done = run([str(HERE / "sglang_tokens.py"), str(written_model(model)), str(result)], environment)
        return Served(done.returncode, done.stdout, _last_json(result), _last_json(state))

    return serve
