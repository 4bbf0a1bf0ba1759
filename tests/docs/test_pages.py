"""The pages lead where they say, and the README's lines of Python run."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

import serving_ops

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)|<img [^>]*src=\"([^\"]+)\"")


def _without_code(page: Path) -> str:
    return re.sub(r"^```.*?^```$|^    .*?$|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def _links(page: Path) -> list[str]:
    return [first or second for first, second in LINK.findall(_without_code(page))]


def _anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings: lower case, no punctuation, hyphens for spaces."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_file_and_a_heading_that_are_there(page: Path) -> None:
    broken = []
    for link in _links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if "://" not in link and not (target.exists() and (not anchor or anchor in _anchors(target))):
            broken.append(link)
    assert not broken


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, ahead = set(), [README]
    while ahead:
        page = ahead.pop()
        reached.add(page)
        linked = {(page.parent / link.partition("#")[0]).resolve() for link in _links(page)}
        ahead += [found for found in linked - reached if found in PAGES]
    assert reached == set(PAGES)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_a_page_names_is_there(page: Path) -> None:
    """By its path, or where a page names it beside another file by its name alone. NAME stands for any name."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    if not tracked:
        pytest.skip("not a checkout of git")
    named = set(re.findall(r"`([\w./-]+(?:\.(?:py|h|cpp|def|json|svg)|/))`", page.read_text()))
    named = {name for name in named if not re.search(r"[A-Z]{4}|^dist/", name)}
    assert not {name for name in named if not any(f"/{name}" in f"/{path}" for path in tracked)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_opens_with_its_answer(page: Path) -> None:
    """With words, and not with a list, a table or a heading."""
    title, _, rest = page.read_text().partition("\n")
    assert title.startswith("# ")
    assert re.match(r"\n[A-Za-z`]", rest)


def test_the_readmes_lines_of_python_run() -> None:
    section = README.read_text().partition("\n## The ops\n")[2].partition("\n## ")[0]
    lines = [line.strip() for line in section.splitlines() if line.startswith("    ")]
    assert len(lines) == 4
    x, residual, z = torch.randn(3, 8, 256, dtype=torch.bfloat16).unbind()
    names: dict[str, Any] = {"serving_ops": serving_ops, "x": x, "residual": residual, "z": z, "eps": 1e-6}
    names["weight"] = torch.ones(256, dtype=torch.bfloat16)
    for line in lines:
        exec(line, names)
    assert names["y"].shape == x.shape
    assert names["q"].dtype == torch.float8_e4m3fn
    assert names["scales"].shape == (8, 2)
