from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from serving_ops.bench_e2e import options, presets, result_file, smollm2
from serving_ops.bench_e2e.accuracy import accuracy_bench
from serving_ops.bench_e2e.accuracy.accuracy_bench import NOT_QUANTIZED, markdown, measure
from serving_ops.bench_e2e.accuracy.engine_logits import of_prompt, record_logits
from serving_ops.bench_e2e.environment import detect_device

transformers = pytest.importorskip("transformers")

VOCABULARY = 512
TEXT = " ".join(f"w{2 + (7 * index * index + 3) % (VOCABULARY - 2)}" for index in range(60))


def _checkpoint(folder: Path) -> Path:
    """A small Llama whose weights are large, so that its logits at one position say nothing about another's."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=0.2,
        max_position_embeddings=256,
        bos_token_id=1,
        eos_token_id=1,
    )
    folder.mkdir()
    presets._write_tokenizer(folder, VOCABULARY)
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)  # config.json is the model's
    return folder


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_engine_in_bf16_is_near_the_reference_with_and_without_our_norms(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("vllm")
    model = _checkpoint(tmp_path / "model")
    monkeypatch.setattr(smollm2, "checkpoint", lambda quantization=None: model)
    (found,) = measure(TEXT, [(NOT_QUANTIZED, "eager")], detect_device(), tmp_path)
    (row,) = found["rows"]
    said = ["the reference: 60 tokens in fp32", "bf16, eager, native", "bf16, eager, serving_ops"]
    assert capsys.readouterr().out.splitlines() == said
    assert found["tokens"] == 60
    assert row["active"]
    assert "on for 5 of 5 RMSNorm" in row["startup"]
    # Logits of the neighbouring position would diverge by several nats.
    assert set(row["divergence"]) == {"native", "serving_ops"}
    assert all(0 < divergence < 0.02 for divergence in row["divergence"].values())
    assert all(abs(value / found["reference_perplexity"] - 1) < 0.05 for value in row["perplexity"].values())
    low, high = row["divergence_ratio"][1:]
    assert low < 1.5
    assert high > 0.5


@pytest.mark.parametrize("cut", [KeyboardInterrupt, RuntimeError])
def test_a_run_that_is_cut_keeps_the_combinations_that_it_has_measured(
    cut: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, text = _checkpoint(tmp_path / "model"), tmp_path / "text"
    text.write_text(TEXT)
    asked: list[str] = []

    def engine_logits(_: None, mode: str, variant: str, tokens: list[int], *of: object) -> tuple[torch.Tensor, str]:
        asked.append(f"{mode} {variant}")
        if len(asked) > 3:
            raise cut
        return torch.randn(len(tokens) - 1, VOCABULARY), ""

    monkeypatch.setattr(accuracy_bench, "_engine_logits", engine_logits)
    monkeypatch.setattr(accuracy_bench, "TEXT", text)
    monkeypatch.setattr(smollm2, "checkpoint", lambda quantization=None: model)
    monkeypatch.setattr(options, "check_ready", lambda *_: None)
    with pytest.raises(cut):
        accuracy_bench.main(["--out", str(tmp_path / "cut.json")])
    assert asked == ["eager native", "eager serving_ops", "compiled native", "compiled serving_ops"]
    saved = result_file.read(tmp_path / "cut.json")
    assert [row["mode"] for row in saved["rows"]] == ["eager"]
    assert "| bf16, eager |" in markdown(saved)


def test_what_the_model_computes_is_kept_and_returned() -> None:
    class Model:
        def compute_logits(self, hidden: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
            return hidden * scale

    model, found = Model(), []
    record_logits(model, found)
    hidden = torch.arange(6.0).view(3, 2)
    assert torch.equal(model.compute_logits(hidden, scale=2.0), hidden * 2)
    assert [entry.tolist() for entry in found] == [(hidden * 2).tolist()]


@pytest.mark.parametrize("rows", [[6, 1], [1, 4, 3], [4, 2, 1]], ids=str)
def test_the_logits_of_a_prompt_are_put_together_of_what_vllm_computes_at_a_time(rows: list[int]) -> None:
    """A prompt of 7 tokens: vLLM leaves out the last one's, or not; those of the sampled token come apart."""
    whole = torch.arange(14.0).view(7, 2)
    apart, of_chunks = (
        torch.full((1, 2), -1.0),
        iter(whole.split([row for row in rows if row > 1] + [7 - sum(r for r in rows if r > 1)])),
    )
    found = [apart if row == 1 else next(of_chunks) for row in rows]
    assert torch.equal(of_prompt(found, 7), whole[:6])


def test_logits_of_another_number_of_tokens_are_refused() -> None:
    with pytest.raises(RuntimeError, match=r"logits for \[4, 1\] tokens of 7"):
        of_prompt([torch.zeros(4, 2), torch.zeros(1, 2)], 7)


def test_a_line_of_the_table_has_both_engines_and_the_ratio_with_its_interval() -> None:
    row: dict[str, Any] = {
        "quantization": "int8-token",
        "mode": "eager",
        "perplexity": {"native": 13.2161, "serving_ops": 13.2229},
        "divergence": {"native": 0.0011754, "serving_ops": 0.0012027},
        "divergence_ratio": [1.023, 0.99, 1.056],
        "active": True,
    }
    start = "| int8-token, eager | 13.216 | 13.223 | 0.00118 | 0.0012 |"
    assert _last_line(row) == f"{start} 1.023 [0.990, 1.056] |"
    assert _last_line({**row, "active": False}) == f"{start} vLLM's norms run |"


def _last_line(row: dict[str, Any]) -> str:
    """Of the table, behind which the run is named."""
    run = {"versions": {"vllm": "0.32.0", "torch": "2.13.0"}, "hardware": {"cpu": "Some CPU", "cores": 2, "gpu": None}}
    run |= {"engine": "vllm", "device": "cpu", "date": "2026-11-28T12:00:00+00:00", "command": "accuracy"}
    line, empty, named = markdown({"rows": [row], **run}).splitlines()[-3:]
    assert (empty, named) == ("", "vllm 0.32.0, torch 2.13.0, Some CPU, 2 cores, 2026-11-28: `accuracy`")
    return str(line)
