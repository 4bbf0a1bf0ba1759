"""What the environment variables may hold, what they mean, and what is said about values that they may not hold."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import serving_ops
from serving_ops import settings

ROOT = Path(__file__).resolve().parents[2]
EVERYTHING = frozenset(settings.OPS)
NAMES = {variable.name for variable in settings.VARIABLES}


@pytest.fixture(autouse=True)
def _nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("SERVING_OPS"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(settings, "_said", set())
    monkeypatch.setattr(settings, "_refused", {})


@pytest.mark.parametrize(
    ("value", "mode", "ops"),
    [
        (None, "off", EVERYTHING),
        ("", "off", EVERYTHING),
        (" Auto ", "auto", EVERYTHING),
        ("strict", "strict", EVERYTHING),
        ("rms_norm", "auto", {"rms_norm"}),
        ("strict, rms_norm,rms_norm_gated", "strict", {"rms_norm", "rms_norm_gated"}),
        ("off,rms_norm", "off", {"rms_norm"}),
    ],
)
def test_a_mode_and_names_of_ops(monkeypatch: pytest.MonkeyPatch, value: str | None, mode: str, ops: set[str]) -> None:
    if value is None:
        monkeypatch.delenv("SERVING_OPS", raising=False)
    else:
        monkeypatch.setenv("SERVING_OPS", value)
    assert settings.mode() == mode
    assert settings.ops() == ops


@pytest.mark.parametrize("value", ["on", "1", "auto,rmsnorm", "auto,strict", "rms_norm;fused_add_rms_norm"])
def test_anything_else_is_an_error_that_names_what_is_allowed(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("SERVING_OPS", value)
    for read in (settings.mode, settings.ops, settings.choice):
        with pytest.raises(ValueError, match=f"SERVING_OPS='{value}'.*off, auto, strict"):
            read()


def test_the_choice_is_said_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVING_OPS", "strict")
    assert settings.choice() == "strict"
    monkeypatch.setenv("SERVING_OPS", "rms_norm,fused_add_rms_norm")
    assert settings.choice() == "auto for fused_add_rms_norm, rms_norm alone"


@pytest.mark.parametrize(
    ("value", "meaning"),
    [
        *[(value, True) for value in (None, "", " ", "1", "true", "on", "yes", "True", "ON", " Yes ")],
        *[(value, False) for value in ("0", "false", "off", "no", "False", "OFF", " No ")],
    ],
)
@pytest.mark.parametrize(
    ("variable", "read"),
    [(settings.PREWARM, settings.prewarm_enabled), (settings.PDL, settings.pdl_enabled)],
    ids=["PREWARM", "PDL"],
)
def test_a_switch_takes_every_common_word_in_any_case(
    monkeypatch: pytest.MonkeyPatch, variable: settings.Variable, read: object, value: str | None, meaning: bool
) -> None:
    if value is not None:
        monkeypatch.setenv(variable.name, value)
    assert read() is meaning  # type: ignore[operator]
    assert settings.errors() == []


@pytest.mark.parametrize("value", ["avx512", "AVX512", " Avx2 ", "NEON", "portable"])
def test_an_instruction_set_is_known_in_any_case(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("SERVING_OPS_CPU_ISA", value)
    assert settings.cpu_isa() == value.strip().lower()
    assert settings.errors() == []


WRONG = {
    "SERVING_OPS_PREWARM": ("maybe", "2", "none"),
    "SERVING_OPS_PDL": ("disable", "-1"),
    "SERVING_OPS_CPU_ISA": ("avx-512", "sse4", "1"),
    "SERVING_OPS_BUILD": ("requird", "1"),
    "SERVING_OPS": ("stirct", "1"),
}
ALLOWED = {
    "SERVING_OPS_CPU_ISA": "allowed are avx512, avx2, neon, portable. The default is used: the best that the CPU has",
    "SERVING_OPS_BUILD": "allowed are required, 0, false, off, no. The default is used: off",
    "SERVING_OPS": "allowed are off, auto, strict, and fused_add_rms_norm, qk_norm_rope, rms_norm, rms_norm_gated",
}
SWITCH = "allowed are 1, true, on, yes, 0, false, off, no. The default is used: 1"


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in WRONG for value in WRONG[name]])
def test_a_wrong_value_is_an_error_that_names_it_what_is_allowed_and_what_is_done(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    (error,) = settings.errors()
    assert f"{name}={value!r} is not known: {ALLOWED.get(name, SWITCH)}" in error
    assert error.startswith("serving_ops is off: " if name == "SERVING_OPS" else "serving_ops: ")
    settings.report(logging.getLogger("an.engine"))
    assert [(record.levelname, record.name, record.message) for record in caplog.records] == [
        ("ERROR", "an.engine", error)
    ]


def test_every_variable_has_wrong_values_in_these_tests() -> None:
    assert WRONG.keys() == NAMES


def test_a_wrong_value_means_the_default_and_is_said_once_without_an_engine(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SERVING_OPS_PREWARM", "maybe")
    monkeypatch.setenv("SERVING_OPS_PDL", "maybe")
    monkeypatch.setenv("SERVING_OPS_CPU_ISA", "sse4")
    for _ in range(2):
        assert settings.prewarm_enabled()
        assert settings.pdl_enabled()
        assert settings.cpu_isa() is None
    assert len(caplog.records) == 3


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("SERVING_OPS_PREWARN", "SERVING_OPS_PREWARM"),
        ("SERVING_OPS_CPUISA", "SERVING_OPS_CPU_ISA"),
        ("SERVING_OPS_ISA", "SERVING_OPS_CPU_ISA"),
        ("SERVING_OPS_PLD", "SERVING_OPS_PDL"),
    ],
)
def test_an_unknown_variable_is_a_warning_that_names_the_nearest(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str, meant: str
) -> None:
    monkeypatch.setenv(name, "0")
    settings.report(logging.getLogger("an.engine"))
    ((level, line),) = [(record.levelname, record.message) for record in caplog.records]
    assert level == "WARNING"
    assert line == f"serving_ops knows no {name}: did you mean {meant}?"


def _isa_in_a_new_process(value: str) -> tuple[str, str]:
    """The kernels that the library chose, and what was logged."""
    program = "from serving_ops import extension; print(extension.instruction_set())"
    environment = os.environ | {"SERVING_OPS_CPU_ISA": value}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip(), done.stderr


@pytest.mark.skipif(serving_ops.cpp_library() is None, reason="the C++ library is not built")
def test_the_library_runs_the_instruction_set_that_python_read() -> None:
    assert _isa_in_a_new_process("PORTABLE") == ("portable", "")
    best = serving_ops.extension.instruction_set()
    chosen, said = _isa_in_a_new_process("sse4")
    assert chosen == best
    assert "SERVING_OPS_CPU_ISA='sse4' is not known: allowed are avx512" in said


@pytest.mark.skipif(serving_ops.cpp_library() is None, reason="the C++ library is not built")
def test_an_instruction_set_that_this_cpu_lacks_is_an_error_too() -> None:
    lacking = "avx2" if serving_ops.extension.instruction_set() == "neon" else "neon"
    chosen, said = _isa_in_a_new_process(lacking)
    assert chosen != lacking
    assert f"SERVING_OPS_CPU_ISA='{lacking}' is not possible: this processor or build has no {lacking} kernels" in said


def test_the_page_on_installing_describes_every_variable() -> None:
    rows = re.findall(r"^\| (.*) \|$", (ROOT / "docs" / "install.md").read_text(), re.MULTILINE)
    described = {cells[0].strip("`"): [cells[1], cells[-1].strip("`")] for cells in (row.split(" | ") for row in rows)}
    for variable in settings.VARIABLES:
        assert described[variable.name] == [variable.meaning, variable.default]


def test_the_code_names_no_variable_that_is_not_described_and_cpp_reads_none() -> None:
    folders = [ROOT / folder for folder in ("serving_ops", "integrations", "kernels", "bench_e2e")]
    python = [file.read_text() for folder in folders for file in folder.rglob("*.py")]
    cpp = [file.read_text() for suffix in ("cpp", "h") for file in (ROOT / "kernels").rglob(f"*.{suffix}")]
    assert {name for text in python for name in re.findall(r"""["'](SERVING_OPS(?:_[A-Z]+)*)["']""", text)} == NAMES
    assert cpp
    assert not [text for text in cpp if "getenv" in text]
