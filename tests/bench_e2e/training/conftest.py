"""Variables that an engine sets in the process that imports it are no part of a recorded command here."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def _no_engine_was_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("VLLM_", "SGLANG_"))]:
        monkeypatch.delenv(name)
