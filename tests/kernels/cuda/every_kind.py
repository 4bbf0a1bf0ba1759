"""A CUDA call of every kind of kernel: compiled and launched from Python, then launched from C++ with the same result.

To be run in a fresh process; test_launcher.py does, and so can checkers of memory and of races:

    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck python tests/kernels/cuda/every_kind.py
    compute-sanitizer --tool racecheck python tests/kernels/cuda/every_kind.py
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import serving_ops
from serving_ops import NormSpec, QuantFormat, RopeSpec, counters
from serving_ops.integrations.common import rope_text
from serving_ops.ops import registry

BF16, CUDA = torch.bfloat16, torch.device("cuda")
Call = Callable[[], object]


def calls_of_every_kind() -> dict[str, Call]:
    def normal(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
        return torch.randn(*shape, dtype=dtype, device="cuda")

    fused, plain, gated = serving_ops.fused_add_rms_norm, serving_ops.rms_norm, serving_ops.rms_norm_gated
    quant, fused_quant = serving_ops.rms_norm_quant, serving_ops.fused_add_rms_norm_quant
    gated_quant, token = serving_ops.rms_norm_gated_quant, QuantFormat(granularity="token")
    int8, given = QuantFormat(dtype=torch.int8, granularity="token"), QuantFormat(granularity="tensor")
    packed = QuantFormat(scale_format="ue8m0", scale_layout="tma_aligned")
    fp8, section = torch.float8_e4m3fn, (24, 20, 20)
    heads = normal(5, 4096)[:, 1024:2048].unflatten(1, (8, 128))
    gate = normal(5, 8192)[:, 3072 : 3072 + 1024].unflatten(1, (8, 128))
    odd_gate = normal(3, 1001)[:, 1:513].unflatten(1, (4, 128))
    return {
        "fused": lambda: fused(normal(3, 4096), normal(3, 4096), normal(4096)),
        "one odd row": lambda: fused(normal(1, 4095), normal(1, 4095), normal(4095)),
        "odd rows": lambda: plain(normal(7, 4095), normal(4095)),
        "fp32 weight": lambda: fused(normal(2, 2048), normal(2, 2048), normal(2048, dtype=torch.float32)),
        "offset": lambda: fused(normal(2, 2048), normal(2, 2048), normal(2048), weight_offset=1.0),
        "no weight": lambda: plain(normal(2, 2048), None),
        "fp16": lambda: plain(normal(2, 2048, dtype=torch.float16), normal(2048, dtype=torch.float16)),
        "fp32": lambda: plain(normal(2, 2048, dtype=torch.float32), normal(2048, dtype=torch.float32)),
        "wide": lambda: fused(normal(2, 40000), normal(2, 40000), normal(40000)),
        "heads of a wider tensor": lambda: plain(heads, normal(128)),
        "narrow, some rows": lambda: plain(normal(700, 128), normal(128)),
        "narrow, many rows": lambda: plain(normal(3000, 128), normal(128)),
        "rows apart by an odd stride": lambda: plain(normal(3, 1001)[:, 1:897], normal(896)),
        "gated": lambda: gated(normal(5, 8, 128), gate, normal(128, dtype=torch.float32)),
        "gated, odd strides": lambda: gated(normal(3, 4, 128), odd_gate, normal(128)),
        "no gate": lambda: gated(normal(5, 8, 128), None, normal(128)),
        "gate first, bias, groups": lambda: gated(
            normal(5, 512), normal(5, 512), normal(512), bias=normal(512), norm_before_gate=False, group_size=128
        ),
        "sigmoid": lambda: gated(normal(5, 1024), normal(5, 1024), normal(1024), activation="sigmoid"),
        "the first of a pair": lambda: serving_ops.rms_norm_of_sum(normal(3, 4096), normal(3, 4096), normal(4096)),
        "the first of a pair, wide": lambda: serving_ops.rms_norm_of_sum(normal(2, 40000), normal(2, 40000), None),
        "the second of a pair": lambda: serving_ops.fused_add_two_rms_norm(
            normal(3, 4096), normal(3, 4096), normal(3, 4096), normal(4096)
        ),
        "the second of a pair, narrow, fp32 residual": lambda: serving_ops.fused_add_two_rms_norm(
            normal(700, 128), normal(700, 128, dtype=torch.float32), normal(700, 128), normal(128), weight_offset=1.0
        ),
        "the second of a pair, wide": lambda: serving_ops.fused_add_two_rms_norm(
            normal(2, 40000), normal(2, 40000), normal(2, 40000), normal(40000)
        ),
        "fused, fp32 residual": lambda: fused(normal(3, 4096), normal(3, 4096, dtype=torch.float32), normal(4096)),
        "fused and quantized, fp32 residual": lambda: fused_quant(
            normal(3, 4096), normal(3, 4096, dtype=torch.float32), normal(4096), fmt=QuantFormat()
        ),
        "quantized": lambda: quant(normal(3, 4096), normal(4096), fmt=QuantFormat()),
        "quantized, packed scales": lambda: quant(normal(3, 4096), normal(4096), fmt=packed),
        "quantized by a given scale": lambda: quant(
            normal(3, 4096), normal(4096), fmt=given, scale=normal(1, dtype=torch.float32).abs()[0]
        ),
        "quantized wide": lambda: fused_quant(normal(2, 40960), normal(2, 40960), normal(40960), fmt=token),
        "quantized narrow": lambda: quant(heads, normal(128), fmt=token),
        "fused, quantized": lambda: fused_quant(normal(3, 4096), normal(3, 4096), normal(4096), fmt=QuantFormat()),
        "fused, int8": lambda: fused_quant(normal(3, 4095), normal(3, 4095), None, fmt=int8),
        "quantized and not": lambda: quant(
            normal(3, 2048), normal(2048), fmt=token, normed=torch.empty(3, 2048, dtype=BF16, device="cuda")
        ),
        "gated, quantized": lambda: gated_quant(
            normal(5, 1024), normal(5, 1024), normal(1024), fmt=QuantFormat(), norm_group_size=128
        ),
        "rotated": lambda: rotated(5),
        "rotated, many heads": lambda: rotated(1000),
        "rotated, odd start": lambda: rotated(5, token_stride=33 * 128 + 1),
        "rotated, fp32 weights, interleaved, a part": lambda: rotated(
            5, weight_dtype=torch.float32, rotation={"is_neox": False, "rotary_dim": 64, "table_dtype": torch.float32}
        ),
        "rotated and not normed": lambda: rotated(5, weight_dtype=None),
        "rotated by sections": lambda: rotated(5, rotation={"mrope_section": section}),
        "rotated by sections in turns": lambda: rotated(
            5, rotation={"mrope_section": section, "mrope_interleaved": True, "index_dtype": torch.int32}
        ),
        "rotated and cached": lambda: rotated(5, rotation={"has_cache": True}),
        "rotated and cached by slots, apart": lambda: rotated(
            5, rotation={"has_cache": True, "block_size": None, "separate": True, "index_dtype": torch.int32}
        ),
        "rotated and cached in FP8": lambda: rotated(5, rotation={"has_cache": True, "cache_dtype": fp8}),
        "rotated for a layer": lambda: rotated_for_a_layer(96),
        "rotated for a layer by sections": lambda: rotated_for_a_layer(96, mrope_section=(16, 16, 16)),
        "rotated for a layer and cached": lambda: rotated_for_a_layer(80, has_cache=True),
        "rotated for a layer and cached, apart": lambda: rotated_for_a_layer(72, has_cache=True, separate=True),
    }


def call_of_rotation(tokens: int, size: int = 128, *, rotation: dict[str, Any], **layer: Any) -> dict[str, Any]:
    """Arguments of `qk_norm_rope`, with random numbers."""
    rope = RopeSpec(8, **rotation)
    spec = NormSpec("qk_norm_rope", size, BF16, layer.pop("weight_dtype", BF16), CUDA, heads=16, rotation=rope, **layer)
    call = registry.sample(spec, tokens)
    for name, value in call.items():
        if isinstance(value, Tensor) and value.is_floating_point() and "scale" not in name and "cache" not in name:
            value.normal_()
    call["cos_sin_cache"].normal_()
    return call


def written(call: dict[str, Any]) -> tuple[Tensor, ...]:
    return tuple(call[name] for name in ("qkv", "k", "key_cache", "value_cache") if call[name] is not None)


def rotated(tokens: int, *, rotation: dict[str, Any] | None = None, **layer: Any) -> tuple[Tensor, ...]:
    call = call_of_rotation(tokens, rotation=rotation or {}, **layer)
    serving_ops.qk_norm_rope(**call)
    return written(call)


def rotated_for_a_layer(size: int, **rotation: Any) -> tuple[Tensor, ...]:
    rope_text.define()
    call = call_of_rotation(3, size, rotation={"rotary_dim": size, **rotation})
    tensors = [call[name] for name in ("qkv", "positions", "cos_sin_cache", "q_weight", "k_weight")]
    text, ours = rope_text.options_text(call), torch.ops.serving_ops
    if call["key_cache"] is None:
        ours.qk_norm_rope_short(*tensors, text)
    else:
        of_cache = [call[name] for name in ("k", "v", "key_cache", "value_cache", "slot_mapping")]
        ours.qk_norm_rope_short_cached(*tensors, text, *of_cache)
    return written(call)


def launched_from_cpp() -> int:
    calls = counters.snapshot().values()
    return sum(of_op["kernel"] - of_op["from_python"] for of_op in calls)


def launched_from_python() -> int:
    return sum(of_op["from_python"] for of_op in counters.snapshot().values())


def on_the_same_numbers(call: Call) -> list[Tensor]:
    torch.manual_seed(0)
    result = call()
    return list(result) if isinstance(result, tuple) else [result]  # type: ignore[list-item]


def same_bits(a: Tensor, b: Tensor) -> bool:
    as_bytes = (tensor.flatten().contiguous().view(torch.uint8) for tensor in (a, b))
    return a.dtype == b.dtype and a.stride() == b.stride() and torch.equal(*as_bytes)


def main() -> None:
    for kind, call in calls_of_every_kind().items():
        before, by_python = launched_from_cpp(), launched_from_python()
        expected = on_the_same_numbers(call)
        assert launched_from_cpp() == before, f"{kind}: compiled before"
        assert launched_from_python() == by_python + 1, f"{kind}: not counted as launched from Python"
        results = on_the_same_numbers(call)
        assert launched_from_cpp() == before + 1, f"{kind}: launched from Python again"
        assert all(map(same_bits, results, expected)), f"{kind}: C++ gives the kernel other arguments"
        print("ran", kind)


if __name__ == "__main__":
    main()
