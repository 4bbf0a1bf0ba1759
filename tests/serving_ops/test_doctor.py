"""`python -m serving_ops doctor` says what is on, and exits with 1 where nothing is."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

import serving_ops

HIDE_LIBRARY = (
    "import pathlib, runpy, sys; is_file = pathlib.Path.is_file; "
    "pathlib.Path.is_file = lambda self: not self.name.endswith('.so') and is_file(self); "
    "sys.argv = ['serving_ops', 'doctor', '--json']; runpy.run_module('serving_ops', run_name='__main__')"
)


def doctor(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"SERVING_OPS": "off", "CUDA_VISIBLE_DEVICES": ""} | environment
    return subprocess.run([sys.executable, *command], env=env, capture_output=True, text=True, check=False)


@pytest.mark.skipif(serving_ops.cpp_library() is None, reason="the C++ library is not built")
def test_it_names_the_instruction_set_and_exits_with_0() -> None:
    done = doctor("-m", "serving_ops", "doctor", "--json")
    report = json.loads(done.stdout)
    assert done.returncode == 0
    assert report["kernels"]["cpu"]["active"]
    assert any(name in report["kernels"]["cpu"]["detail"] for name in ("avx512", "avx2", "neon", "portable"))


def test_it_exits_with_1_where_nothing_is_active() -> None:
    done = doctor("-c", HIDE_LIBRARY)
    assert done.returncode == 1
    assert "not built" in json.loads(done.stdout)["kernels"]["cpu"]["detail"]


def test_it_says_what_to_set_for_the_plugin_to_be_on() -> None:
    pytest.importorskip("vllm", reason="vLLM is not installed")
    assert "SERVING_OPS=auto" in doctor("-m", "serving_ops", "doctor").stdout
    on = json.loads(doctor("-m", "serving_ops", "doctor", "--json", SERVING_OPS="auto").stdout)
    assert on["engines"]["vllm"]["active"]
    filtered = doctor("-m", "serving_ops", "doctor", "--json", SERVING_OPS="auto", VLLM_PLUGINS="other")
    assert not json.loads(filtered.stdout)["engines"]["vllm"]["active"]
