"""The committed tables are what the committed results render, whichever bench they are from."""

from __future__ import annotations

import re
import shutil
import subprocess
import textwrap
from pathlib import Path

import pytest

from serving_ops.bench_e2e import cli, result_file, table
from serving_ops.bench_e2e.comparison import Comparison
from serving_ops.bench_e2e.result_file import compact

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "bench_e2e" / "results"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def _tables(page: Path) -> list[tuple[str, str]]:
    """All but that of who gains, which is made of all results."""
    return re.findall(r"<!-- table:(?!gains)(\S+) -->\n(.*?)<!-- /table -->", page.read_text(), re.DOTALL)


@pytest.mark.parametrize("page", [page for page in PAGES if _tables(page)], ids=lambda page: page.name)
def test_every_table_is_made_from_its_result(page: Path, tmp_path: Path) -> None:
    emptied, names = tmp_path / page.name, [name for name, _ in _tables(page)]
    emptied.write_text("".join(f"<!-- table:{name} -->\n<!-- /table -->\n" for name in names))
    files = [str(file) for name in names if (file := RESULTS / f"{name}.json").is_file()]
    assert cli.main(["table", *files, "--readme", str(emptied)]) == 0
    made = dict(_tables(emptied))
    for name, text in _tables(page):
        assert name.endswith("-summary") or made[name] == text


def _table_commands(page: Path, checkout: Path) -> list[list[str]]:
    """Working folder and words of each `table` command in the page's code, as bash expands them."""
    blocks = [block for block in re.findall(r"(?:^    .*\n)+", page.read_text(), re.MULTILINE) if "2e table" in block]
    told = "python() { printf '%s\\0' \"$PWD\" \"$@\"; printf '\\0'; }\n"
    script = told + "\n".join(f"(\n{textwrap.dedent(block)})" for block in blocks)
    done = subprocess.run(["bash", "-ec", script], cwd=checkout, capture_output=True, text=True, check=True)
    commands = [command.split("\0") for command in done.stdout.split("\0\0") if command]
    return [[folder, *words] for folder, _, _, *words in commands if words[0] == "table"]


@pytest.mark.parametrize("page", [page for page in PAGES if _tables(page)], ids=lambda page: page.name)
def test_the_commands_on_a_page_render_its_tables(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(RESULTS, tmp_path / "bench_e2e" / "results")
    copy = tmp_path / page.relative_to(ROOT)
    copy.parent.mkdir(exist_ok=True)
    emptied = re.sub(r"(<!-- table:(?!gains)\S+ -->\n).*?(<!-- /table -->)", r"\1\2", page.read_text(), flags=re.DOTALL)
    copy.write_text(emptied)
    for folder, *words in _table_commands(page, tmp_path):
        monkeypatch.chdir(folder)
        assert cli.main(words) == 0
    assert copy.read_text() == page.read_text()


@pytest.mark.parametrize("page", [page for page in PAGES if _tables(page)], ids=lambda page: page.name)
def test_every_table_names_its_command_its_day_its_machine_and_its_versions(page: Path) -> None:
    for name, text in _tables(page):
        if (file := RESULTS / f"{name}.json").is_file():
            result = result_file.read(file)
            machine = result["hardware"]["gpu" if result["device"] == "cuda" else "cpu"]
            command = result_file.shown_command(result)
            named = (command, result["date"][:10], machine, result["versions"]["torch"].partition("+")[0])
            assert all(part in text for part in named), name


@pytest.mark.parametrize("files", [["ops-h200"], ["turns-h200-sglang", "turns-h200-sglang-hybrid"]])
def test_a_summary_goes_to_its_own_place(files: list[str], tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- table:all-summary -->\n<!-- /table -->\nafter\n")
    words = [*(str(RESULTS / f"{name}.json") for name in files), "--summary", "all", "--readme", str(page)]
    assert table.main(words) == 0
    assert _tables(page)[0][1].startswith("| ")


def test_a_summary_of_several_engines_names_them(capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(RESULTS / f"{name}.json") for name in ("turns-h200", "turns-h200-sglang")]
    assert table.main([*files, "--summary", "all"]) == 0
    assert re.findall(r"^\| (vllm|sglang), preset dense", capsys.readouterr().out, re.MULTILINE) == ["vllm", "sglang"]
    assert table.main([files[0], "--summary", "all"]) == 0
    assert "| preset dense, compiled |" in capsys.readouterr().out


def test_results_of_several_kinds_have_no_summary(capsys: pytest.CaptureFixture[str]) -> None:
    for files in (["ops-h200", "turns-h200"], ["serve-cpu"]):
        assert table.main([*(str(RESULTS / f"{name}.json") for name in files), "--summary", "all"]) == 1
        assert "--summary is for results of" in capsys.readouterr().err


PAGE = "before\n<!-- table:sample -->\nold\n<!-- /table -->\nafter\n<!-- table:x -->\n<!-- /table -->\n"


def test_a_table_replaces_what_stands_between_its_markers_and_nothing_else(result: Comparison, tmp_path: Path) -> None:
    (tmp_path / "sample.json").write_text(compact(result.to_json()))
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    for _ in range(2):  # a second run changes nothing
        assert table.main([str(tmp_path / "sample.json"), "--readme", str(page)]) == 0
    text = page.read_text()
    assert text.startswith("before\n<!-- table:sample -->\n**preset dense")
    assert text.endswith("<!-- /table -->\nafter\n<!-- table:x -->\n<!-- /table -->\n")
    assert "old" not in text
    assert text.count("TTFT median") == 1


def test_a_table_without_its_markers_is_an_error_that_leaves_the_page(
    result: Comparison, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sample.json").write_text(compact(result.to_json()))
    page = tmp_path / "page.md"
    page.write_text("no markers\n")
    assert table.main([str(tmp_path / "sample.json"), "--readme", str(page)]) == 1
    assert "<!-- table:sample -->" in capsys.readouterr().err
    assert page.read_text() == "no markers\n"
