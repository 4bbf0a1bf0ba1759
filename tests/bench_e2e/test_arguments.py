"""What every bench refuses before anything starts, and that it saves what it measured. Nothing is started here."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest

from serving_ops.bench_e2e import cli, environment, serve, session, smollm2, step
from serving_ops.bench_e2e.comparison import Comparison
from serving_ops.bench_e2e.process import Children
from serving_ops.bench_e2e.result_file import save
from serving_ops.bench_e2e.server import LABELS

ON = "serving_ops 0.1.0 (auto, cpu): on for 5 of 5 RMSNorm"
BENCHES = ("serve", "step", "ops", "training", "training-steps", "accuracy")


def no_registry(*_: object) -> None:
    raise smollm2.Unavailable("there is no registry")


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In an empty folder, with a vLLM on CPU that is only said to be installed; whatever starts is an error."""

    def start(*_: object, **__: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(Children, "start", start)
    monkeypatch.setattr(environment, "engine_version", lambda engine="vllm": "0.32.0+cpu")
    monkeypatch.setattr(environment, "plugin_installed", lambda engine="vllm": True)
    monkeypatch.setattr(environment, "detect_device", lambda engine="vllm": "cpu")
    monkeypatch.setattr(session, "end_as_if_interrupted", lambda: None)
    monkeypatch.setattr(smollm2, "checkpoint", no_registry)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "folder.json").mkdir()


def refused(words: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(Path().rglob("*"))
    with pytest.raises(SystemExit) as end:
        cli.main(words)
    assert end.value.code == 2
    assert sentence in capsys.readouterr().err
    assert sorted(Path().rglob("*")) == before


REFUSED: dict[str, list[tuple[tuple[str, ...], str]]] = {
    "serve": [
        (("--preset", "smollm2"), "--preset smollm2: there is no registry"),
        (("--preset", "sparse"), "invalid choice: 'sparse'"),
        (
            ("--preset", "smollm2", "--quantization", "fp8-block"),
            "--quantization fp8-block: allowed with dense, dense-8b",
        ),
        (("--input-len", "16384"), "--preset dense has 16384 positions: 16460 tokens do not fit"),
        (("--pairs", "²"), "'²'; allowed: whole numbers from 1"),
        (("--output-len", "1"), "'1'; allowed: whole numbers from 2"),
        (("--preset", "hybrid", "--model", "x"), "not allowed with"),
        (("--eager", "--compiled"), "not allowed with"),
        (("--engine", "sglang", "--compiled"), "--compiled: SGLang compiles nothing on CPU"),
        (("--preset", "hybrid", "--quantization", "fp8-token"), "--quantization fp8-token: allowed with dense"),
        (("--model", "file", "--quantization", "fp8-token"), "--quantization fp8-token: for presets alone"),
        (("--quantization", "fp6"), "invalid choice: 'fp6'"),
        (
            ("--engine", "sglang", "--quantization", "int8-token"),
            "int8-token: allowed with dense, dense-8b, and on CPU",
        ),
        (("--engine", "sglang", "--preset", "mamba2"), "--preset mamba2: SGLang does not run it on cpu"),
        (("--engine", "sglang", "--preset", "hybrid"), "--preset hybrid: SGLang does not run it on cpu"),
    ],
    "step": [
        (("--prompt-lens", "16384"), "--preset dense has 16384 positions: 16449 tokens do not fit"),
        (("--batch-sizes", "1,x"), "'x'; allowed: whole numbers from 1"),
        (("--rounds", "0"), "'0'; allowed: whole numbers from 1"),
    ],
    "accuracy": [
        (("--modes", "fast"), "'fast'; allowed: eager, compiled"),
        (("--quantizations", "none,fp8-block"), "'none,fp8-block'; allowed: none, int8-token"),
    ],
    "ops": [
        (("--regime", "rows,decode"), "--regime decode: on cpu there are rows, variants, gated"),
        (("--regime", "rows", "--sizes", "1x2x3x4"), "no such size here"),
    ],
    "training": [(("--regime", "large"), "--regime large: on cpu there are rows, gated")],
    "training-steps": [
        (("--rounds", "0"), "argument --rounds"),
        *((("--batch", *of), "argument --batch") for of in (("4",), ("2", "0"), ("2x128",))),
    ],
}
for _bench in ("serve", "step"):
    REFUSED[_bench] += [
        (("--engine-args", "{"), "'{'; allowed: a JSON object"),
        (("--engine-args", "[1]"), "'[1]'; allowed: a JSON object"),
        (("--engine-args", '{"model": "x"}'), "the bench decides model; allowed: other arguments"),
        (("--engine-args", '{"--api-key": "x"}'), "the bench decides api_key"),
        (("--engine-args", '{"pipeline_parallel_size": 2}'), "the bench decides pipeline_parallel_size"),
        (("--model", "./nowhere"), "'./nowhere'; allowed: a folder that exists, or a name on the hub"),
        (("--model", "no/such/folder"), "'no/such/folder'; allowed: a folder that exists, or a name on the hub"),
        (("--model", ""), "''; allowed: a folder that exists, or a name on the hub"),
    ]
for _bench in BENCHES:
    REFUSED[_bench] += [
        (("--out", "."), "--out: . cannot be written; allowed: a file in a folder"),
        (("--out", "folder.json"), "--out: folder.json cannot be written; allowed: a file in a folder"),
        (("--out", "file/x.json"), "--out: file/x.json cannot be written; allowed: a file in a folder"),
        *((("--out", "n" * count + ".json"), "has at most 200 bytes") for count in (196, 300)),
        *((("--out", name), f"--out: {name} cannot be written") for name in ("out.png", "out", "out.json.gz")),
        (("--out", "out.png"), "whose name ends in .json"),
    ]
for _bench in ("ops", "training", "training-steps"):
    REFUSED[_bench].append((("--device", "cuda"), "--device cuda: torch finds no GPU"))
for _bench in ("ops", "training"):
    REFUSED[_bench] += [
        (("--threads", "0"), "'0'; allowed: whole numbers from 1"),
        (("--sizes", "64"), "'64'; allowed: sizes such as 1x4096"),
        (("--sizes", "0x64"), "'0'; allowed: whole numbers from 1"),
        (("--sizes", ","), "','; allowed: names, separated by commas"),
        (("--op", "softmax"), "'softmax'; allowed: "),
    ]
ALL_REFUSED = [(bench, *case) for bench, cases in REFUSED.items() for case in cases]


@pytest.mark.parametrize(("bench", "words", "sentence"), ALL_REFUSED)
def test_what_cannot_work_is_refused_before_anything_starts(
    bench: str,
    words: tuple[str, ...],
    sentence: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    device = ("--device", "cpu") if bench in ("ops", "training") and "--device" not in words else ()
    refused((bench, *device, *words), sentence, capsys)


@pytest.mark.parametrize("bench", BENCHES)
@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("SERVING_OPS", "stirct", "error: SERVING_OPS='stirct' is not known: allowed are"),
        ("SERVING_OPS_PDL", "never", "error: SERVING_OPS_PDL='never' is not known: allowed are"),
        ("SERVING_OPS_CPU_ISO", "avx2", "SERVING_OPS_CPU_ISO: did you mean SERVING_OPS_CPU_ISA?"),
    ],
)
def test_a_variable_that_says_nothing_is_refused(
    bench: str,
    name: str,
    value: str,
    sentence: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(name, value)
    refused((bench,), sentence, capsys)


@pytest.mark.parametrize(
    "text", ["", "[]", '{"results": 1}', '{"results": []}', '{"step_ms": 1}', '{"kind": "turns"}', "{}", None]
)
def test_a_file_that_is_no_result_is_named(text: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    if text is not None:
        Path("other.json").write_text(text)
    assert cli.main(["table", "other.json"]) == 1
    assert "other.json" in capsys.readouterr().err


def entry(**figures: float) -> dict[str, float]:
    return dict.fromkeys(LABELS, 10.0) | figures


def test_whole_pairs_are_saved_though_the_run_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: serve.Serving, work: Path) -> None:
        for variant in ("native", "serving_ops", "native"):
            self.keep(variant, entry())
        self.measured.plugin_lines["serving_ops"].append(ON)
        raise KeyboardInterrupt

    monkeypatch.setattr(serve.Serving, "run", interrupted)
    assert cli.main(["serve", "--out", "out/sample.json"]) == 130
    pairs = json.loads(Path("out/sample.json").read_text())["pairs"]
    assert {variant: len(entries) for variant, entries in pairs.items()} == {"native": 1, "serving_ops": 1}


def test_what_was_measured_is_saved_whatever_ends_the_run(result: Comparison) -> None:
    def measure(work: Path) -> None:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        session.run(measure, result, Path("out/sample.json"))
    assert Path("out/sample.json").is_file()


def test_whole_rounds_are_saved_even_where_a_time_is_0(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = {"tpot_ms_batch_1": 5.0, "decode_step_device_ms_batch_1": 0.0}

    def interrupted(self: step.Engines, work: Path) -> None:
        self.measured.plugin_lines["serving_ops"].append(ON)
        self.keep({"native": [[figures]], "serving_ops": [[figures, figures]]})
        raise KeyboardInterrupt

    monkeypatch.setattr(step.Engines, "run", interrupted)
    assert cli.main(["step", "--out", "out/sample.json"]) == 130
    plain = json.loads(Path("out/sample.json").read_text())
    assert plain["rounds"]["native"] == [[figures]]
    assert list(plain["ratios"]["serving_ops"]) == ["tpot_ms_batch_1"]


@pytest.mark.parametrize(("bench", "run"), [("serve", serve.Serving), ("step", step.Engines)])
def test_a_models_folder_is_handed_on_as_an_absolute_path(
    bench: str, run: type, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen = []
    monkeypatch.setattr(run, "run", lambda self, work: seen.append(self.chosen.model))
    (tmp_path / "model").mkdir()
    assert cli.main([bench, "--model", "./model"]) == 0
    assert seen == [str(tmp_path / "model")]


@pytest.mark.parametrize("broken", ["Comparison.show", "write_plot"])
def test_a_result_is_saved_whatever_happens_to_its_table_and_picture(
    broken: str, result: Comparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("made of cheese")

    monkeypatch.setattr(f"serving_ops.bench_e2e.session.{broken}", fail)
    with contextlib.suppress(RuntimeError):
        session.publish(result, Path("out/sample.json"))
    assert json.loads(Path("out/sample.json").read_text())["model"] == "preset dense"


def test_a_result_whose_folder_is_gone_is_saved_elsewhere() -> None:
    found = save({"figures": []}, Path("file/sample.json"))
    assert json.loads(found.read_text()) == {"figures": []}
    assert found.name == "sample.json"


def test_a_device_is_written_to_and_stays_one() -> None:
    assert save({}, Path("/dev/null")).is_char_device()
