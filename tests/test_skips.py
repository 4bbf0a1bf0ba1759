"""With SKIPS_FAIL set, only the skips that are expected everywhere are skips."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent

SKIPPING = """
import pytest

def test_without_a_gpu():
    pytest.skip("needs a CUDA device")

def test_without_a_compiler():
    pytest.skip("needs a C++ compiler")

@pytest.mark.skipif(True, reason="vLLM 1.0 was not fetched")
def test_without_a_version():
    pass
"""


def _outcome(folder: Path, source: str, **environment: str) -> str:
    (folder / "test_of_many.py").write_text(source)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "skips", "-p", "no:cacheprovider", "--rootdir", str(folder)]
    ours = {"PYTHONPATH": str(HERE)} | environment
    here = {name: value for name, value in os.environ.items() if name != "SKIPS_FAIL"}
    done = subprocess.run([*command, str(folder)], env=here | ours, cwd=folder, capture_output=True, text=True)
    return done.stdout


@pytest.mark.parametrize(
    ("environment", "outcome"), [({}, "3 skipped"), ({"SKIPS_FAIL": "1"}, "1 failed, 1 skipped, 1 error")]
)
def test_what_a_machine_lacks_is_a_failure(tmp_path: Path, environment: dict[str, str], outcome: str) -> None:
    assert outcome in _outcome(tmp_path, SKIPPING, **environment)


def test_a_file_skipped_as_a_whole_is_a_failure_too(tmp_path: Path) -> None:
    source = "import pytest; pytest.importorskip('no_such_engine')"
    assert "1 skipped" in _outcome(tmp_path, source)
    assert "1 error" in _outcome(tmp_path, source, SKIPS_FAIL="1")


def test_what_the_matrix_does_not_install_is_a_skip_there_alone(tmp_path: Path) -> None:
    source = "import pytest; pytest.importorskip('no_such_triton', reason='needs Triton')"
    assert "1 skipped" in _outcome(tmp_path, source, SKIPS_FAIL="matrix")
    assert "1 error" in _outcome(tmp_path, source, SKIPS_FAIL="1")
