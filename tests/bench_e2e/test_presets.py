from __future__ import annotations

import json
from pathlib import Path

import pytest

from serving_ops.bench_e2e.presets import (
    CHECKPOINTS,
    PRESETS,
    QUANTIZATIONS,
    QUANTIZED,
    TOKENIZER,
    preset_config,
    preset_engine_args,
    write_preset,
)

transformers = pytest.importorskip("transformers")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("name", PRESETS)
def test_transformers_reads_the_configuration_without_a_download(name: str, device: str, tmp_path: Path) -> None:
    config = transformers.AutoConfig.from_pretrained(write_preset(name, tmp_path, device))
    text = config.get_text_config()
    assert text.num_hidden_layers == preset_config(name, device).get("text_config", text.to_dict())["num_hidden_layers"]
    if name == "hybrid":
        assert set(text.layer_types) == {"linear_attention", "full_attention"}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("name", PRESETS)
def test_random_tokens_survive_decoding_and_encoding(name: str, device: str, tmp_path: Path) -> None:
    folder = write_preset(name, tmp_path, device) / TOKENIZER
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokens = [2, 77, 77, len(tokenizer) - 1]
    assert tokenizer.encode(tokenizer.decode(tokens)) == tokens


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_prompt_is_never_too_long_in_characters_for_vllm(device: str, tmp_path: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(write_preset("dense", tmp_path, device) / TOKENIZER)
    tokens = [len(tokenizer) - 1] * 512  # the longest words
    assert len(tokenizer.decode(tokens)) <= len(tokens) * max(map(len, tokenizer.get_vocab()))


def test_qwen3_next_has_the_expert_layer_without_which_vllm_refuses_it() -> None:
    config = preset_config("hybrid", "cpu")
    sparse = set(range(config["num_hidden_layers"])) - set(config["mlp_only_layers"])
    assert sparse
    assert config["num_experts"] >= config["num_experts_per_tok"]


def test_weights_are_never_read_from_disk() -> None:
    for name in PRESETS:
        assert preset_engine_args(name, "cpu")["load_format"] == "dummy"


def test_only_a_quantization_while_loading_is_told_to_the_engine() -> None:
    assert preset_engine_args("dense", "cuda", quantized="fp8-online")["quantization"] == "fp8"
    assert "quantization" not in preset_engine_args("dense", "cuda", quantized="fp8-token")


def test_a_quantized_checkpoint_says_so_and_nothing_else_changes(tmp_path: Path) -> None:
    plain = json.loads((write_preset("dense", tmp_path / "plain") / "config.json").read_text())
    for name in QUANTIZATIONS:
        config = json.loads((write_preset("dense", tmp_path / name, quantized=name) / "config.json").read_text())
        assert config.pop("quantization_config", None) == CHECKPOINTS.get(name)
        assert config == plain


@pytest.mark.parametrize("preset", QUANTIZED)
def test_blocks_fit_the_presets_that_can_be_quantized(preset: str) -> None:
    rows, columns = CHECKPOINTS["fp8-block"]["weight_block_size"]
    config = preset_config(preset, "cuda")
    heads = [config["head_dim"] * config[count] for count in ("num_attention_heads", "num_key_value_heads")]
    sizes = [config["hidden_size"], config["intermediate_size"], *heads]
    assert all(size % rows == size % columns == 0 for size in sizes)
