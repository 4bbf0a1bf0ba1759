"""The plugin on the oldest and the newest vLLM that pyproject.toml allows: what it installs, and its own tests there.

test_engine.py serves with them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import other_versions
import pytest

from serving_ops.integrations.vllm import features
from serving_ops.integrations.vllm.adapters import STATE_SPACE

HERE = Path(__file__).parent
PYPROJECT = HERE.parents[2] / "pyproject.toml"

IN_PROCESS = (
    "test_plugin.py",
    "test_cpu_classes.py",
    "test_register.py",
    "test_absences.py",
    "test_batch_invariance.py",
    "test_token_pass.py",
    "test_quantized_pairs.py",
    "test_qk_norm_rope.py",
    "test_cache_write.py",
    "test_mixer_gate.py",
    "test_mixer_output.py",
    "test_norm_pairs.py",
    "test_model_doctor.py",
)
"""Tests of the plugin inside a vLLM, without an engine; the last builds a hybrid and a Mamba-2."""

on_each = pytest.mark.parametrize(
    "version", [pytest.param(version, marks=other_versions.marks(version)) for version in other_versions.VERSIONS]
)

INSTALL = """
import json
from types import SimpleNamespace
from serving_ops.integrations.vllm import features, installed, register
from serving_ops.integrations.vllm.adapters import STATE_SPACE
register()
model_config = SimpleNamespace(has_inner_state=True)
features.install_for(SimpleNamespace(model_config=model_config, quant_config=None), strict=True)
import vllm
from vllm.platforms import current_platform
every = features.FEATURES + STATE_SPACE
wanted = [feature for feature in every if features._is_wanted(feature)]
print(json.dumps([vllm.__version__, current_platform.device_type, wanted, installed.failures]))
"""

RUN_TESTS = """
import sys, vllm, pytest
assert vllm.__version__ == sys.argv[1], vllm.__file__
sys.exit(pytest.main(sys.argv[2:]))
"""


def _run(version: str, *arguments: str, switch: str = "strict") -> str:
    ours = {"PYTHONSAFEPATH": "1", "SERVING_OPS": switch, "VLLM_NO_USAGE_STATS": "1"}
    environment = os.environ | other_versions.environment(version) | ours
    command = [sys.executable, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return done.stdout


def _last_json(output: str) -> Any:
    return json.loads(output.splitlines()[-1])


@on_each
def test_every_feature_is_in_place(version: str) -> None:
    vllm, device, wanted, failures = _last_json(_run(version, "-c", INSTALL))
    assert (vllm, device, failures) == (version, "cpu", {})
    every = features.FEATURES + STATE_SPACE
    assert wanted == [feature for feature in every if feature != "RMSNorm"]


@on_each
def test_the_doctor_sees_it(version: str) -> None:
    engines = json.loads(_run(version, "-m", "serving_ops", "doctor", "--json", switch="auto"))["engines"]
    assert engines["vllm"] == {"active": True, "detail": f"vllm {version}+cpu loads the plugin, SERVING_OPS=auto"}


@on_each
def test_the_plugins_own_tests_pass_inside_it(version: str) -> None:
    files = [str(HERE / name) for name in IN_PROCESS]
    options = ["--rootdir", str(PYPROJECT.parent), "-c", str(PYPROJECT), "-q", "-p", "no:cacheprovider"]
    output = _run(version, "-c", RUN_TESTS, version, *options, *files, switch="off")
    assert " passed" in output
    assert "failed" not in output


def test_these_versions_are_the_ends_of_what_pyproject_allows() -> None:
    from packaging.specifiers import SpecifierSet

    extras = tomllib.loads(PYPROJECT.read_text())["project"]["optional-dependencies"]
    allowed = SpecifierSet(extras["vllm"][0].removeprefix("vllm"))
    oldest, newest = other_versions.VERSIONS
    assert f">={oldest}" in str(allowed).split(",")
    assert newest in allowed
    major, minor, _ = map(int, newest.split("."))
    assert f"{major}.{minor + 1}.0" not in allowed
