"""What every bench refuses before anything starts, and that it saves what it measured. Nothing is started here."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from serving_ops.bench_e2e import cli, environment, options
from serving_ops.bench_e2e.load import METRICS
from serving_ops.bench_e2e.process import Children
from serving_ops.bench_e2e.result import Result, Round
from serving_ops.bench_e2e.saving import save
from serving_ops.bench_e2e.turns import cli as turns_cli
from serving_ops.bench_e2e.turns.result import EngineRun

ON = "serving_ops 0.1.0 (auto, cpu): on for 5 of 5 RMSNorm"
BENCHES = {"serve": (), "turns": ("--turns",), "ops": ("--ops",), "training": ("--training",)}
BENCHES |= {"steps": ("--training", "steps")}
NEEDS_FOLDER, NEEDS_FILE = ("serve", "turns"), ("ops", "training", "steps")


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In an empty folder, with a vLLM on CPU that is only said to be installed; whatever starts is an error."""

    def start(*_: object, **__: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(Children, "start", start)
    monkeypatch.setattr(environment, "engine_version", lambda engine="vllm": "0.32.0+cpu")
    monkeypatch.setattr(environment, "plugin_installed", lambda engine="vllm": True)
    monkeypatch.setattr(environment, "detect_device", lambda engine="vllm": "cpu")
    monkeypatch.setattr(cli, "end_as_if_interrupted", lambda: None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()


def refused(words: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(Path().rglob("*"))
    with pytest.raises(SystemExit) as end:
        cli.main(words)
    assert end.value.code == 2
    assert sentence in capsys.readouterr().err
    assert sorted(Path().rglob("*")) == before


REFUSED: dict[str, list[tuple[tuple[str, ...], str]]] = {
    "serve": [
        (("--serve-args", "--max-num-seqs 'four"), "No closing quotation"),
        (("--serve-args", "--max-num-seqs 4 --port 80"), "--port: the bench decides it"),
        (("--serve-args=--api_key=x",), "--api-key: the bench decides it"),
        (("--port", "70000"), "'70000'; allowed: auto, or 1 to 65535"),
        (("--input-len", "16384"), "--preset dense has 16384 positions: 16480 tokens do not fit"),
        (("--variants", "native,fast"), "allowed: one or both of native, serving_ops"),
        (("--rounds", "0"), "'0'; allowed: whole numbers from 1"),
        (("--rounds", "²"), "'²'; allowed: whole numbers from 1"),
        (("--output-len", "1"), "'1'; allowed: whole numbers from 2"),
        (("--device", "cuda"), "runs on cpu"),
        (("--preset", "hybrid", "--model", "x"), "not allowed with"),
        (("--eager", "--compiled"), "not allowed with"),
        (("--engine", "sglang", "--compiled"), "--compiled: SGLang compiles nothing on CPU"),
        (("--preset", "hybrid", "--quantization", "fp8-token"), "--quantization fp8-token: for --preset dense or"),
        (("--model", "file", "--quantization", "fp8-token"), "--quantization fp8-token: for --preset dense or"),
        (("--quantization", "fp6"), "invalid choice: 'fp6'"),
        (("--engine", "sglang", "--quantization", "int8-token"), "SGLang quantizes nothing on CPU"),
        (("--engine", "sglang", "--preset", "mamba2"), "--preset mamba2"),
        (("--engine", "sglang", "--preset", "hybrid"), "--preset hybrid"),
    ],
    "turns": [
        (("--engine-args", "{"), "'{' is no JSON"),
        (("--engine-args", "[1]"), "'[1]'; allowed: a JSON object"),
        (("--engine-args", '{"model": "x"}'), "the model is the option --model"),
        (("--engine-args", '{"pipeline_parallel_size": 2}'), "only tensor parallelism is measured"),
        (("--kv-cache-gib", "nan"), "'nan'; allowed: numbers above 0"),
        (("--kv-cache-gib", "-1"), "'-1'; allowed: numbers above 0"),
        (("--prompt-lens", "16384"), "--preset dense has 16384 positions: 16385 tokens do not fit"),
        (("--batch-sizes", "1,x"), "'x'; allowed: whole numbers from 1"),
        (("--rounds", "0"), "'0'; allowed: whole numbers from 1"),
        (("--engine", "sglang", "--compiled"), "--compiled: SGLang compiles nothing on CPU"),
    ],
    "ops": [(("--regime", "decode"), "choose from rows, variants, gated")],
    "training": [(("--regime", "large"), "choose from rows, gated")],
    "steps": [
        (("--rounds", "0"), "argument --rounds"),
        (("--layers", "-1"), "argument --layers"),
        *((("--batch", text), "argument --batch") for text in ("4", "2x0", "1x2x3")),
    ],
}
for _bench in NEEDS_FOLDER:
    REFUSED[_bench] += [
        (("--out", "file"), "--out: file/result.json cannot be written: Not a directory"),
        (("--out", "/proc/nowhere"), "--out: /proc/nowhere/result.json cannot be written: No such file"),
        (("--name", "a/b"), "'a/b'; allowed: a file's name without folders"),
        (("--name", ""), "''; allowed: a file's name without folders"),
        (("--name", "n" * 250), "of at most 200 bytes"),
        (("--model", "./nowhere"), "'./nowhere': there is no such folder"),
        (("--model", "no/such/folder"), "'no/such/folder': there is no such folder"),
        (("--model", ""), "'': there is no such folder"),
    ]
for _bench in NEEDS_FILE:
    REFUSED[_bench] += [
        (("--out", "."), "--out: . cannot be written: Is a directory"),
        (("--out", "file/x.json"), "--out: file/x.json cannot be written: Not a directory"),
        (("--device", "cuda"), "--device cuda: torch finds no GPU"),
    ]
for _bench in ("ops", "training"):
    REFUSED[_bench] += [
        (("--threads", "0"), "'0'; allowed: whole numbers from 1"),
        (("--sizes", "64"), "'64'; allowed: sizes such as 1x4096"),
        (("--sizes", "0x64"), "'0'; allowed: whole numbers from 1"),
        (("--sizes", ","), "','; allowed: names, separated by commas"),
        (("--op", "softmax"), "softmax: on cpu choose from"),
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
    refused((*BENCHES[bench], *device, *words), sentence, capsys)


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
    refused(BENCHES[bench], sentence, capsys)


def test_a_port_that_another_program_listens_on_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        refused(("--port", str(other.getsockname()[1])), "cannot be used: Address already in use", capsys)


def test_words_for_the_server_are_split_as_a_shell_does() -> None:
    chosen = options.parse(["--serve-args", "--max-num-seqs 4", "--serve-args", "--name 'a b'"])
    assert chosen.serve_args == ["--max-num-seqs", "4", "--name", "a b"]


@pytest.mark.parametrize(
    "text", ["", "[]", '{"results": 1}', '{"results": []}', '{"step_ms": 1}', '{"kind": "turns"}', "{}", None]
)
def test_a_file_that_is_no_result_is_named(text: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    if text is not None:
        Path("other.json").write_text(text)
    assert cli.main(["table", "other.json"]) == 1
    assert "other.json" in capsys.readouterr().err


Measure = Callable[..., None]


def interrupted_in_round_2(experiment: object, work: object, progress: object, rounds: dict[str, list[Round]]) -> None:
    def entry(number: int) -> Round:
        return Round(number, 1, 1001, 9.0, True, ON, dict.fromkeys(METRICS, 10.0))

    rounds["native"] += [entry(1), entry(2)]
    rounds["serving_ops"] += [entry(1)]
    raise KeyboardInterrupt


def test_whole_rounds_are_saved_though_the_run_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "run_rounds", interrupted_in_round_2)
    assert cli.main(["--out", "out", "--name", "sample"]) == 130
    variants = json.loads(Path("out/sample.json").read_text())["variants"]
    assert {name: len(variant["rounds"]) for name, variant in variants.items()} == {"native": 1, "serving_ops": 1}


def engines_whose(figures: dict[str, float]) -> Measure:
    def run(*arguments: object) -> None:
        arguments[-1].update(native=[EngineRun(None, [figures])], serving_ops=[EngineRun(ON, [figures])])  # type: ignore[attr-defined]
        raise KeyboardInterrupt

    return run


def test_whole_turns_are_saved_even_where_a_time_is_0(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = {"tpot_ms_batch_1": 5.0, "decode_step_device_ms_batch_1": 0.0}
    monkeypatch.setattr(turns_cli, "run", engines_whose(figures))
    assert cli.main(["--turns", "--out", "out", "--name", "sample"]) == 130
    plain = json.loads(Path("out/sample.json").read_text())
    assert plain["engines"]["native"][0]["rounds"] == [figures]
    assert list(plain["ratios"]["serving_ops"]) == ["tpot_ms_batch_1"]


@pytest.mark.parametrize("bench", [(), ("--turns",)])
def test_a_models_folder_is_handed_on_as_an_absolute_path(
    bench: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen = []

    def run(first: object, *_: object) -> None:
        seen.append(first["model"] if bench else first.model)  # type: ignore[index, attr-defined]

    monkeypatch.setattr(*((turns_cli, "run") if bench else (cli, "run_rounds")), run)
    (tmp_path / "model").mkdir()
    cli.main([*bench, "--model", "./model"])
    assert seen == [str(tmp_path / "model")]


@pytest.mark.parametrize("broken", ["print_result", "write_plot"])
def test_a_result_is_saved_whatever_happens_to_its_table_and_picture(
    broken: str, result: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("made of cheese")

    monkeypatch.setattr(cli, broken, fail)
    with contextlib.suppress(RuntimeError):
        cli._publish(result, Path("out"), cli.Console())
    assert json.loads(Path("out/sample.json").read_text())["name"] == "sample"


def test_a_result_whose_folder_is_gone_is_saved_elsewhere() -> None:
    found = save({"figures": []}, Path("file/sample.json"))
    assert json.loads(found.read_text()) == {"figures": []}
    assert found.name == "sample.json"


def test_a_device_is_written_to_and_stays_one() -> None:
    assert save({}, Path("/dev/null")).is_char_device()
