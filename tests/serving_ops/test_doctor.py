"""`python -m serving_ops doctor` says what is on, and exits with 1 where nothing is."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

import serving_ops
from serving_ops import doctor as doctor_module

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


WRONG = {"SERVING_OPS": "stirct", "SERVING_OPS_PDL": "maybe", "SERVING_OPS_CPU_ISA": "sse4", "SERVING_OPS_PREWARN": "0"}
LINES = ("serving_ops is off: SERVING_OPS='stirct'", "SERVING_OPS_PDL='maybe'", "SERVING_OPS_CPU_ISA='sse4'")


def test_wrong_variables_are_listed_in_a_report_that_is_complete() -> None:
    text = doctor("-m", "serving_ops", "doctor", **WRONG)
    assert text.stdout.startswith("serving_ops doctor: ")
    assert "Traceback" not in text.stderr
    for line in LINES:
        assert re.search(rf"^  error: .*{re.escape(line)} is not known: allowed are ", text.stdout, re.MULTILINE)
    assert "  warning: serving_ops knows no SERVING_OPS_PREWARN: did you mean SERVING_OPS_PREWARM?" in text.stdout
    report = json.loads(doctor("-m", "serving_ops", "doctor", "--json", **WRONG).stdout)
    assert len(report["settings"]["errors"]) == len(LINES)
    assert len(report["settings"]["warnings"]) == 1
    assert report["kernels"].keys() == {"cpu", "cuda"}
    assert report["engines"].keys() == {"vllm", "sglang"}


def test_an_instruction_set_that_this_cpu_lacks_is_listed() -> None:
    if serving_ops.cpp_library() is None:
        pytest.skip("the C++ library is not built")
    lacking = "avx2" if serving_ops.extension.instruction_set() == "neon" else "neon"
    report = json.loads(doctor("-m", "serving_ops", "doctor", "--json", SERVING_OPS_CPU_ISA=lacking).stdout)
    assert [f"no {lacking} kernels" in line for line in report["settings"]["errors"]] == [True]


def test_without_wrong_variables_nothing_is_listed() -> None:
    done = doctor("-m", "serving_ops", "doctor", "--json", SERVING_OPS="auto", SERVING_OPS_PDL="No")
    assert json.loads(done.stdout)["settings"] == {"errors": [], "warnings": []}


def test_a_wrong_variable_keeps_the_plugin_off_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVING_OPS", "stirct")
    monkeypatch.setattr(doctor_module, "version_of", lambda name: "1.0")
    monkeypatch.setattr(doctor_module.importlib.metadata, "entry_points", lambda **_: ["ours"])
    for name in ("vllm", "sglang"):
        finding = doctor_module.examine().engines[name]
        assert not finding.active
        assert "stays off: SERVING_OPS='stirct' is not known" in finding.detail


def test_what_breaks_under_examination_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> bool:
        raise RuntimeError("a driver from another century")

    monkeypatch.setattr(doctor_module.torch.cuda, "is_available", broken)
    report = doctor_module.examine()
    assert report.kernels["cuda"] == doctor_module.Finding(False, "RuntimeError: a driver from another century")
    assert "another century" in report.as_text()


def test_a_model_that_cannot_be_examined_is_a_line_and_status_1() -> None:
    done = doctor("-m", "serving_ops", "doctor", "--json", "--model", "/no/such/model", SERVING_OPS="stirct")
    assert done.returncode == 1
    assert json.loads(done.stdout)["model"].startswith("/no/such/model cannot be examined: ")
    assert "Traceback" not in done.stderr
