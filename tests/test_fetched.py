"""What is fetched is there as a whole, or not at all, and then a sentence says why."""

from __future__ import annotations

from pathlib import Path

import fetched
import pytest


def test_a_folder_is_replaced_by_one_that_was_filled(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    for text in ("old", "new"):
        with fetched.filling(kept) as target:
            target.mkdir()
            (target / text).write_text(text)
    assert [path.name for path in kept.iterdir()] == ["new"]


def test_what_pip_does_not_find_is_said_and_leaves_the_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()

    def fetch(version: str) -> None:
        with fetched.filling(kept) as target:
            fetched.pip("install", "--no-index", "--target", str(target), f"no-such-package=={version}")

    fetched.fetch_each("Nothing", ["1.0"], fetch)
    said = capsys.readouterr().out
    assert said.startswith("Nothing 1.0 was not fetched, its tests will be skipped: ")
    assert "no-such-package==1.0" in said
    assert kept.is_dir()
    assert not [*kept.iterdir()]
