"""Skips that continuous integration does not accept."""

from __future__ import annotations

import os
import re
from collections.abc import Generator

import pytest

SKIPS_FAIL = "SKIPS_FAIL"
"""With this variable set, as in continuous integration, a skip for any reason but these is a failure: a machine that
lacks a compiler, the C++ library or an engine's other version would otherwise pass without the tests that need it."""

EXPECTED_SKIPS = (
    "needs a CUDA device",
    "needs two CUDA devices",
    "covered by bfloat16",
    r"this processor has no (avx512|avx2|neon)",
    r"needs (aarch64-linux-gnu-g\+\+(, qemu-aarch64)?|qemu-aarch64)",
    r"SGLang is not installed beside this package.*",  # test_sglang_versions.py runs these tests in each SGLang
    r"this SGLang.*",  # cannot do what the test is about
    "the plugin is installed here",
    "this process has loaded vLLM's operators already",
)

BESIDE_TORCH_ALONE = ("needs Triton", "vLLM is not installed")
"""Accepted as well where the variable is `matrix`: tests/packaging/matrix.py installs neither."""


def _unexpected(report: pytest.TestReport | pytest.CollectReport) -> str | None:
    """The reason of a skip that this variable makes a failure."""
    wanted = os.environ.get(SKIPS_FAIL)
    if not report.skipped or not wanted or not isinstance(report.longrepr, tuple):
        return None
    reason = report.longrepr[2].removeprefix("Skipped: ")
    accepted = (*EXPECTED_SKIPS, *(BESIDE_TORCH_ALONE if wanted == "matrix" else ()))
    return None if any(re.fullmatch(expected, reason) for expected in accepted) else reason


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if reason := _unexpected(report):
        report.outcome, report.longrepr = "failed", f"skipped, which {SKIPS_FAIL} forbids: {reason}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if reason := _unexpected(report):
        report.outcome, report.longrepr = "failed", f"skipped, which {SKIPS_FAIL} forbids: {reason}"
    return report
