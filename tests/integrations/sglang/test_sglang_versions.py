"""The plugin's own tests inside each SGLang that was fetched, and what the doctor says there."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
import sglang_versions
from sglang_versions import run

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
NEWEST = sglang_versions.VERSIONS[-1]
IN_PROCESS = (
    "test_sglang_norms.py",
    "test_sglang_quantization.py",
    "test_sglang_quantizing.py",
    "test_sglang_qk_norm_rope.py",
    "test_sglang_flag.py",
    "test_register.py",
)

each_version = [
    pytest.param(version, marks=[sglang_versions.needs(version), *([pytest.mark.slow] if version != NEWEST else [])])
    for version in sglang_versions.VERSIONS
]
on_each = pytest.mark.parametrize("version", each_version)

RUN_TESTS = """
import sys, sglang, pytest
assert sglang.__version__ == sys.argv[1], sglang.__file__
sys.exit(pytest.main(sys.argv[2:]))
"""


@on_each
def test_the_plugins_own_tests_pass_inside_it(version: str) -> None:
    options = ["--rootdir", str(ROOT), "-c", str(ROOT / "pyproject.toml"), "-q", "-p", "no:cacheprovider"]
    files = [str(HERE / name) for name in IN_PROCESS]
    done = run(["-c", RUN_TESTS, version, *options, *files], sglang_versions.environment(version))
    assert done.returncode == 0, done.stdout[-6000:]
    assert " passed" in done.stdout


@on_each
def test_the_doctor_sees_it(version: str) -> None:
    environment = sglang_versions.environment(version) | {"SERVING_OPS": "auto"}
    done = run(["-m", "serving_ops", "doctor", "--json"], environment)
    engines = json.loads(done.stdout)["engines"]
    assert engines["sglang"] == {"active": True, "detail": f"sglang {version} loads the plugin, SERVING_OPS=auto"}


@on_each
def test_sglangs_configuration_of_quantized_models_is_the_same_with_the_plugin(version: str) -> None:
    environment = sglang_versions.environment(version)
    done = run([str(HERE / "resolved_arguments.py")], environment)
    assert done.returncode == 0, done.stdout[-6000:]
    (line,) = (line for line in done.stdout.splitlines() if line.startswith('{"off"'))
    resolved = json.loads(line)
    assert resolved["off"].keys() >= {"fp8-token", "fp8-block", "fp8-static", "fp8-online", "int8-token"}
    assert resolved["on"] == resolved["off"]


def test_these_versions_begin_with_the_oldest_that_pyproject_allows() -> None:
    from packaging.specifiers import SpecifierSet

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    allowed = SpecifierSet(extras["sglang"][0].removeprefix("sglang"))
    assert f">={sglang_versions.VERSIONS[0]}" in str(allowed).split(",")
    assert all(version in allowed for version in sglang_versions.VERSIONS)
