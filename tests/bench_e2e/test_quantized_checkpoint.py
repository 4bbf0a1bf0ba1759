from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from serving_ops.bench_e2e import smollm2

safetensors_torch = pytest.importorskip("safetensors.torch")

LINEAR = "model.layers.0.mlp.up_proj.weight"
NORM = "model.layers.0.input_layernorm.weight"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 32, generator=generator) * torch.logspace(-3, 3, 6)[:, None]
    weight[2] = 0
    tensors = {LINEAR: weight.bfloat16(), NORM: torch.ones(32, dtype=torch.bfloat16)}
    safetensors_torch.save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.mark.parametrize(
    ("name", "dtype", "step"),
    [("int8-token", torch.int8, 0.5 / 127), ("fp8-token", torch.float8_e4m3fn, 16 / 448)],
)
def test_each_channel_is_within_half_a_step_of_its_largest_weight(
    name: str, dtype: torch.dtype, step: float, source: Path, tmp_path: Path
) -> None:
    target = tmp_path / name
    target.mkdir()
    smollm2.quantize(source, name, target)
    before = safetensors_torch.load_file(source / "model.safetensors")
    after = safetensors_torch.load_file(target / "model.safetensors")
    weight, scale = after[LINEAR], after[f"{LINEAR}_scale"]
    assert (weight.dtype, scale.dtype, scale.shape) == (dtype, torch.float32, (6, 1))
    exact = before[LINEAR].float()
    error = (weight.float() * scale - exact).abs().amax(dim=1)
    assert (error <= exact.abs().amax(dim=1) * step * (1 + 1e-6)).all()
    largest = weight.float().abs().amax(dim=1)
    assert largest[[0, 1, 3, 4, 5]].unique().tolist() == [127.0 if dtype == torch.int8 else 448.0]
    assert torch.equal(after[NORM], before[NORM])


def test_the_folder_says_how_it_is_quantized_and_has_the_other_files(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "int8"
    target.mkdir()
    smollm2.quantize(source, "int8-token", target)
    config = json.loads((target / "config.json").read_text())
    assert (config["model_type"], config["quantization_config"]["format"]) == ("llama", "int-quantized")
    assert (target / "tokenizer.json").read_text() == "{}"
