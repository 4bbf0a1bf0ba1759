"""The picture of what lies between the products of a layer."""

from __future__ import annotations

import dataclasses
import re
import xml.etree.ElementTree as xml
from pathlib import Path
from typing import Any

import pytest

from serving_ops.bench_e2e import cli, layer_plot
from serving_ops.bench_e2e.comparison import Comparison
from serving_ops.bench_e2e.result_file import compact

ROOT = Path(__file__).parents[2]
GEMM = ("void cutlass::device_kernel<cutlass::gemm::kernel::GemmUniversal<cute::tuple<", 9.0)
ATTENTION = ("void cutlass::device_kernel<flash::enable_sm90_or_later<flash::FlashAttnFwdSm90", 6.0)
SUM = ("void cublasLt::splitKreduce_kernel<32, 16, int, float", 1.0)
LAYERS = {
    "native": [
        ("triton_red_fused__to_copy_add_mean_mul_rsqrt_3", 2.0),
        *(GEMM, SUM),
        ("triton_per_fused_mean_mul_rsqrt_view_4", 1.25),
        ("triton_poi_fused_cat_mul_sub_unified_attention_with_output_5", 1.5),
        ("void vllm::reshape_and_cache_flash_kernel<__nv_bfloat16", 2.0),
        *(ATTENTION, GEMM),
        ("triton_red_fused__to_copy_add_mean_mul_rsqrt_6", 2.0),
        GEMM,
        ("triton_poi_fused_mul_silu_slice_7", 1.25),
        GEMM,
    ],
    "serving_ops": [
        ("norm_row_kernel", 1.5),
        *(GEMM, SUM),
        ("qk_norm_rope_kernel", 1.5),
        ("void vllm::reshape_and_cache_flash_kernel<__nv_bfloat16", 2.0),
        *(ATTENTION, GEMM),
        ("norm_row_kernel", 1.5),
        GEMM,
        ("triton_poi_fused_mul_silu_slice_7", 1.25),
        GEMM,
    ],
}


def _kernels(variant: str, start: int = 0) -> list[dict[str, Any]]:
    layer = LAYERS[variant]
    return [{"name": name, "us": us} for name, us in layer[start:] + layer[:start]]


@pytest.fixture
def with_layer(result: Comparison, tmp_path: Path) -> Path:
    layer = {variant: {"batch_size": 1, "kernels": _kernels(variant)} for variant in LAYERS}
    measured = dataclasses.replace(result, run={**result.run, "kind": "step", "layer": layer})
    path = tmp_path / "sample.json"
    path.write_text(compact(measured.to_json()))
    return path


@pytest.mark.parametrize("variant", LAYERS)
def test_a_layer_begins_with_its_first_norm_wherever_the_profile_began(variant: str) -> None:
    first = layer_plot.parts_of(_kernels(variant))
    for start in range(len(LAYERS[variant])):  # also between the parts of a product
        assert layer_plot.parts_of(_kernels(variant, start)) == first
    assert first[0].role == "norm"


def test_what_lies_between_is_neither_product_nor_attention() -> None:
    native, ours = (layer_plot.parts_of(_kernels(variant)) for variant in ("native", "serving_ops"))
    roles = [part.role for part in native if not part.block]
    assert roles == ["norm", "norm", "rope", "cache", "norm", "SiLU"]
    assert [part.ours for part in ours if not part.block] == [True, True, False, True, False]
    assert not any(part.ours for part in native)
    assert (layer_plot.between(native), layer_plot.between(ours)) == (10.0, 7.75)


def test_rows_that_a_products_library_quantizes_are_no_part_of_the_product() -> None:
    scale = "void tensorrt_llm::kernels::fp8_blockscale_gemm::scale_1x128_kernel<__nv_bfloat16"
    parts = layer_plot.parts_of([{"name": name, "us": 1.0} for name in ("norm_rows_kernel", scale, "deep_gemm", scale)])
    assert sorted(part.role for part in parts if not part.block) == ["norm", "quant", "quant"]


def test_a_layer_without_attention_is_drawn_too() -> None:
    kernels = [{"name": name, "us": 1.0} for name in ("gemm", "norm_row_kernel", "gemm", "conv")]
    assert layer_plot.between(layer_plot.parts_of(kernels)) == 2.0
    assert layer_plot.parts_of(kernels[1:2])[0].ours


def test_the_picture_is_small_and_says_the_sums_and_can_be_read_on_any_page(with_layer: Path, tmp_path: Path) -> None:
    out = tmp_path / "layer.svg"
    assert cli.main(["plot", "layer", str(with_layer), str(with_layer), "--out", str(out)]) == 0
    first = out.read_bytes()
    text = first.decode()
    assert len(first) < 60_000
    assert {"10.0 us", "7.8 us", "with serving_ops"} <= set(_words(out))
    width = float(re.findall(r'<svg [^>]*?width="([\d.]+)pt"', text)[0])
    assert 550 < width <= 600  # points: 800 pixels
    backgrounds = re.findall(r'<g id="patch_1">.*?</g>', text, re.DOTALL)
    assert not re.search(r"fill: #(?!none)", "".join(backgrounds)), "the page's own background is to be seen"
    assert cli.main(["plot", "layer", str(with_layer), str(with_layer), "--out", str(out)]) == 0
    assert out.read_bytes() == first


def _words(picture: Path) -> list[str]:
    return [
        "".join(element.itertext()).strip() for element in xml.parse(picture).iter() if element.tag.endswith("text")
    ]


def test_the_readmes_picture_is_what_its_command_draws(tmp_path: Path) -> None:
    readme = (ROOT / "README.md").read_text()
    (command,) = re.findall(r"python -m serving_ops\.bench_e2e (plot layer [^`]*)`", readme)
    *words, picture = command.split()
    paths = [str(ROOT / word) if word.endswith(".json") else word for word in words]
    drawn = tmp_path / "layer.svg"
    assert cli.main([*paths, str(drawn)]) == 0
    assert _words(drawn) == _words(ROOT / picture)
    sums = [word.removesuffix(" us") for word in _words(drawn) if word.endswith(" us")]
    (alternative,) = re.findall(rf"!\[(.*)\]\({picture}\)", readme)
    assert re.findall(r"([\d.]+) us", alternative) == sums


def test_a_result_without_layers_is_refused_by_name(
    result: Comparison, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "serve.json"
    path.write_text(compact(result.to_json()))
    with pytest.raises(SystemExit) as ended:
        cli.main(["plot", "layer", str(path), "--out", str(tmp_path / "layer.svg")])
    assert ended.value.code == 1
    assert f"{path} says of no layer" in capsys.readouterr().err
    assert not (tmp_path / "layer.svg").exists()
