"""The launcher in C++ against the launch from Python, on CPU tensors and a driver that only remembers.

For any call both must name the same variant and give the kernel the same grid and parameters: otherwise a call would
never leave Python, or a kernel would read what it should not.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
import itertools
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from op_calls import launched
from torch import Tensor

from serving_ops import NormSpec, QuantFormat, RopeSpec, cuda, cuda_rope, plan
from serving_ops.integrations.common import rope_text
from serving_ops.integrations.vllm import quant_fusion
from serving_ops.kernels import contract
from serving_ops.kernels.triton import gated, launch, norm, run_rope
from serving_ops.kernels.triton.launch import SCRATCH_BUFFERS, Launcher
from serving_ops.layout import row_grid
from serving_ops.ops import registry
from serving_ops.quant_format import ALLOWED, LIMITS

HERE = Path(__file__).parent
KERNELS = HERE.parents[2] / "kernels"
RENAMED = {
    "aoti_torch_device_type_cuda": "aoti_torch_device_type_cpu",
    "aoti_torch_get_device_index": "fake_get_device_index",
}
FP8 = torch.float8_e4m3fn
SHARED_BYTES = 48
EPS = 1e-5
OFFSET = 1.0


class Last(ctypes.Structure):
    """As in fake_device.cpp."""

    _fields_ = [
        *((name, ctypes.c_uint64) for name in ("launches", "function", "grid_x", "grid_y", "block_x", "shared_bytes")),
        ("attributes", ctypes.c_uint64),
        *((name, ctypes.c_uint64) for name in ("context", "pushes")),
        ("parameters", ctypes.c_uint64 * (len(contract.FIELDS) + 1)),
    ]


class FromPython:
    """Stands for a Launcher and keeps what it is called with."""

    def __init__(self, launcher: Launcher) -> None:
        self.names, self.recipe = launcher.kernel.arg_names, launcher.recipe

    def __call__(self, *call: Any) -> None:
        self.variant, self.plan, self.grid, self.arguments, self.pdl = call


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    if shutil.which("c++") is None:
        pytest.skip("needs a C++ compiler")
    root = Path(torch.__file__).parent
    built = tmp_path_factory.mktemp("fake") / "fake.so"
    sources = [HERE / "fake_device.cpp", KERNELS / "cuda" / "run.cpp"]
    options = [f"-D{name}={other}" for name, other in RENAMED.items()]
    options.append("-DTORCH_TARGET_VERSION=0x020b000000000000")
    command = ["c++", "-std=c++17", "-O1", "-fPIC", "-shared", *options, f"-I{root / 'include'}"]
    link = [f"-L{root / 'lib'}", "-ltorch_cpu", f"-Wl,-rpath,{root / 'lib'}"]
    subprocess.run([*command, *map(str, sources), *link, "-o", str(built)], check=True)
    fake = torch.library.Library("serving_ops_fake", "DEF")
    for op in registry.OPS.values():
        for schema in registry.schemas_of(op):
            fake.define(schema)
    for name, arguments in (quant_fusion.ARGUMENTS | rope_text.ARGUMENTS).items():
        fake.define(f"{name}({arguments}) -> ()")
    torch.ops.load_library(str(built))
    handle = ctypes.CDLL(str(built))
    handle.fake_last.restype = ctypes.POINTER(Last)
    handle.fake_add.argtypes = [
        ctypes.c_uint64,
        *[ctypes.c_int64] * 5,
        ctypes.c_void_p,
        ctypes.c_uint32,
        ctypes.c_uint32,
        ctypes.c_int,
        ctypes.c_char_p,
        ctypes.c_int,
    ]
    handle.keep = fake
    return handle


SIZES = {"pointer": 8, "i64": 8, "i32": 4, "fp32": 4}
"""Bytes of a parameter."""


def bits(value: Tensor | float) -> int:
    """A parameter as it lies in memory."""
    if isinstance(value, Tensor):
        return value.data_ptr()
    return struct.unpack("<I", struct.pack("<f", value))[0] if isinstance(value, float) else value


def strides_unused(arguments: dict[str, Any]) -> set[str]:
    """Of dimensions with one entry."""
    if "q_weight_ptr" not in arguments:
        return {"scales_row_stride"} if arguments["num_rows"] == 1 else set()
    tokens = {f"{name}_outer_stride" for name in "qkv"} if arguments["q_ptr"].shape[0] == 1 else set()
    slots = {"cache_slot_stride"} if arguments["block_size"] == 1 else set()
    return tokens | slots | {f"{name}_row_stride" for name in "qkv" if arguments[f"{name}_ptr"].shape[-2] == 1}


def check_same(
    library: ctypes.CDLL, python: FromPython, call: Callable[[], object], *, new: frozenset[str] = frozenset()
) -> None:
    """new: parameters that are tensors of each call's making."""
    last = library.fake_last().contents
    function = next(_functions)
    chosen = python.plan
    rows = (chosen.min_rows, chosen.max_rows, chosen.rows_per_program)
    launch = (function, chosen.num_warps, SHARED_BYTES, int(python.pdl))
    assert python.recipe is not None
    library.fake_add(*python.variant, *rows, *launch, python.recipe, len(python.recipe))
    before = last.launches
    call()
    assert last.launches == before + 1, "C++ did not find the variant"
    assert last.function == function
    assert (last.grid_x, last.grid_y, 1) == python.grid
    assert (last.block_x, last.shared_bytes, last.attributes) == (32 * chosen.num_warps, SHARED_BYTES, python.pdl)
    scratch, unused = len(python.recipe) - SCRATCH_BUFFERS, strides_unused(python.arguments) | new
    for name, place in zip(python.names[:scratch], range(scratch), strict=True):
        got = last.parameters[place] & (1 << 8 * SIZES[contract.FIELDS[name]]) - 1
        assert name in unused or got == bits(python.arguments[name]), (name, got)
    assert not any(last.parameters[scratch : len(python.recipe)])


_functions = itertools.count(0x1000)


def check_same_or_neither(
    library: ctypes.CDLL,
    python: FromPython | None,
    call: Callable[[], object],
    *,
    new: frozenset[str] = frozenset(),
) -> None:
    """python: None where the route has the reference run the call."""
    if python is not None:
        return check_same(library, python, call, new=new)
    launches = library.fake_last().contents.launches
    call()
    assert library.fake_last().contents.launches == launches, "C++ launched what the route refuses"


@st.composite
def rows_of(draw: st.DrawFn, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A view of a wider buffer, at any element, with its leading dimensions in order or swapped."""
    gaps = [draw(st.sampled_from([0, 0, 1, 8])) for _ in shape]
    start = draw(st.sampled_from([0, 0, 1, 8]))
    strides, reach = [0] * len(shape), 1
    order = list(range(len(shape) - 1))
    if draw(st.booleans()):
        order.reverse()
    for dim in [len(shape) - 1, *reversed(order)]:
        strides[dim] = reach
        reach = reach * shape[dim] + gaps[dim]
    buffer = torch.zeros(start + reach + 16, dtype=dtype)
    return torch.as_strided(buffer, shape, strides, start)


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    size = draw(st.sampled_from([1, 24, 64, 128, 520, 1023, 2048]))
    leading = draw(st.lists(st.sampled_from([1, 2, 3, 300]), min_size=0, max_size=2))
    dtype = draw(st.sampled_from([torch.bfloat16, torch.float16, torch.float32]))
    shape = (*leading, size)
    groups = draw(st.sampled_from([g for g in (1, 2, 4) if size % g == 0]))
    kinds = st.sampled_from([None, dtype, torch.float32])
    return {
        "x": draw(rows_of(shape, dtype)),
        "other": draw(rows_of(shape, dtype)),
        "residual": draw(rows_of(shape, draw(st.sampled_from([dtype, torch.float32])))),
        "z": draw(st.one_of(st.none(), rows_of(shape, dtype))),
        "weight": draw(kinds),
        "bias": draw(kinds),
        "offset": draw(st.sampled_from([0.0, OFFSET])),
        "group": size // groups,
        "before": draw(st.booleans()),
        "activation": draw(st.sampled_from(["silu", "swish", "sigmoid"])),
        "pdl": draw(st.booleans()),
    }


def parameter(case: dict[str, Any], name: str) -> Tensor | None:
    return None if case[name] is None else torch.zeros(case["x"].shape[-1], dtype=case[name])


relaxed = settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))


@relaxed
@given(case=cases(), fused=st.booleans())
def test_norms_are_launched_from_cpp_as_from_python(library: ctypes.CDLL, case: dict[str, Any], fused: bool) -> None:
    x, other, weight = case["x"], case["other"], parameter(case, "weight")
    residual, out = (case["residual"], x) if fused else (None, other)
    grid = row_grid(x, x if residual is None else residual, out)
    if grid is None:
        return
    chosen = plan.plan_norm(x.shape[-1], x.itemsize, grid.num_rows)
    python = FromPython(norm._LAUNCHERS[chosen.kernel])
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(norm._LAUNCHERS, chosen.kernel, python)
        norm.run_norm(x, residual, weight, out, EPS, case["offset"], grid, chosen, case["pdl"])
    ops = torch.ops.serving_ops_fake
    if fused:
        check_same(
            library, python, lambda: ops.fused_add_rms_norm(x, residual, weight, EPS, weight_offset=case["offset"])
        )
    else:
        check_same(library, python, lambda: ops.rms_norm.out(x, weight, EPS, weight_offset=case["offset"], out=out))


@relaxed
@given(case=cases())
def test_gated_norms_are_launched_from_cpp_as_from_python(library: ctypes.CDLL, case: dict[str, Any]) -> None:
    x, z, out = case["x"], case["z"], case["other"]
    weight, bias, group = parameter(case, "weight"), parameter(case, "bias"), case["group"]
    grid = row_grid(x, x if z is None else z, out)
    if grid is None:
        return
    python = FromPython(gated._launcher)
    chosen = plan.plan_gated(group, x.itemsize, grid.num_rows * (x.shape[-1] // group))
    assert chosen is not None
    options = {"norm_before_gate": case["before"], "activation": case["activation"], "group_size": group}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gated, "_launcher", python)
        sigmoid = case["activation"] == "sigmoid"
        gated.run_gated(x, z, weight, bias, out, EPS, case["before"], sigmoid, group, grid, chosen, case["pdl"])
    ops = torch.ops.serving_ops_fake
    check_same(library, python, lambda: ops.rms_norm_gated.out(x, z, weight, EPS, bias=bias, **options, out=out))


SCALES = list(itertools.product(ALLOWED["scale_format"], ALLOWED["scale_layout"]))
FORMATS = [
    *(QuantFormat(dtype, "group", size, *scales) for dtype in LIMITS for size in (64, 128) for scales in SCALES),
    *(QuantFormat(dtype, "token", 128, *scales) for dtype in LIMITS for scales in SCALES),
    *(QuantFormat(dtype, "tensor") for dtype in LIMITS),
]


NAMES = ("rms_norm_quant", "fused_add_rms_norm_quant")


def scales_of(case: dict[str, Any], fmt: QuantFormat) -> Tensor:
    shape, dtype, strides = fmt.scales(tuple(case["x"].shape))
    if strides is None and case["apart"] and len(shape) > 1:  # rows of a wider buffer
        return torch.zeros(*shape[:-1], shape[-1] + 3, dtype=dtype)[..., : shape[-1]]
    return torch.zeros(shape, dtype=dtype) if strides is None else torch.empty_strided(shape, strides, dtype=dtype)


@st.composite
def quantized_cases(draw: st.DrawFn) -> dict[str, Any]:
    """A case of `cases`, with a format that its rows can have and tensors for its results."""
    case = draw(cases())
    x = case["x"]
    fmt = draw(st.sampled_from([fmt for fmt in FORMATS if x.shape[-1] % fmt.group(x.shape[-1]) == 0]))
    case |= {"fmt": fmt, "apart": draw(st.booleans())}
    case["out"] = draw(rows_of(tuple(x.shape), torch.int8)).view(fmt.dtype)
    case["normed"] = draw(st.one_of(st.none(), st.just(x), rows_of(tuple(x.shape), x.dtype)))
    return case | {"scale": torch.ones(()) if fmt.granularity == "tensor" else None, "scales_out": scales_of(case, fmt)}


class FromCuda:
    """Has `serving_ops.cuda` launch norms that quantize, or are in pairs, on CPU tensors, and keeps the launch."""

    def __init__(self, pdl: bool) -> None:
        self.launchers = [FromPython(launcher) for launcher in (*norm._QUANTIZING.values(), gated._quantizing)]
        self.in_pairs = {kernel: FromPython(launcher) for kernel, launcher in norm._IN_PAIRS.items()}
        self.pdl = pdl

    def launch(self, op: str, **call: Any) -> FromPython | None:
        """None where the reference runs the call."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(norm, "_QUANTIZING", dict(zip(norm._QUANTIZING, self.launchers, strict=False)))
            patch.setattr(gated, "_quantizing", self.launchers[-1])
            patch.setattr(norm, "_IN_PAIRS", self.in_pairs)
            patch.setattr(cuda, "converts_to_fp8", lambda device: True)
            patch.setattr(cuda, "pdl", lambda device: self.pdl)
            patch.setattr(torch.cuda, "_DeviceGuard", lambda index: contextlib.nullcontext())
            if launched(registry.find(op), call) is not None:
                return None
        every = (*self.launchers, *self.in_pairs.values())
        return next(launcher for launcher in every if hasattr(launcher, "variant"))


def written(case: dict[str, Any]) -> dict[str, Any]:
    """The arguments that all quantized norms share, by name."""
    return {name: case[name] for name in ("fmt", "scale", "normed", "out", "scales_out")}


def flat(case: dict[str, Any]) -> dict[str, Any]:
    """The same for an operator."""
    shared = written(case)
    return shared | {"fmt": shared["fmt"].text}


@relaxed
@given(case=quantized_cases(), fused=st.booleans())
def test_quantized_norms_are_launched_from_cpp_as_from_python(
    library: ctypes.CDLL, case: dict[str, Any], fused: bool
) -> None:
    x, weight = case["x"], parameter(case, "weight")
    options = {"weight": weight, "eps": EPS, "weight_offset": case["offset"]}
    rows = {"x": x, "residual": case["residual"]} if fused else {"x": x}
    name = NAMES[fused]
    call = functools.partial(getattr(torch.ops.serving_ops_fake, name).out, **rows, **options, **flat(case))
    check_same_or_neither(library, FromCuda(case["pdl"]).launch(name, **rows, **options, **written(case)), call)


@relaxed
@given(case=quantized_cases())
def test_quantized_gated_norms_are_launched_from_cpp_as_from_python(library: ctypes.CDLL, case: dict[str, Any]) -> None:
    x, z, weight, bias = case["x"], case["z"], parameter(case, "weight"), parameter(case, "bias")
    options = {"norm_before_gate": case["before"], "activation": case["activation"], "norm_group_size": case["group"]}
    options |= {"x": x, "z": z, "weight": weight, "eps": EPS, "bias": bias}
    call = functools.partial(torch.ops.serving_ops_fake.rms_norm_gated_quant.out, **options, **flat(case))
    python = FromCuda(case["pdl"]).launch("rms_norm_gated_quant", **options, **written(case))
    check_same_or_neither(library, python, call)


@relaxed
@given(case=cases())
def test_the_first_norm_of_a_pair_is_launched_from_cpp_as_from_python(
    library: ctypes.CDLL, case: dict[str, Any]
) -> None:
    call = {"x": case["x"], "residual": case["residual"], "weight": parameter(case, "weight"), "eps": EPS}
    call["weight_offset"] = case["offset"]
    name, out = "rms_norm_of_sum", torch.empty(case["x"].shape, dtype=case["x"].dtype)
    python = FromCuda(case["pdl"]).launch(name, **call, out=out)
    ours = functools.partial(torch.ops.serving_ops_fake.rms_norm_of_sum, **call)
    check_same_or_neither(library, python, ours, new=frozenset({"out_ptr"}))


@relaxed
@given(case=cases(), start=st.sampled_from([None, 0, 1, 8]))
def test_the_second_norm_of_a_pair_is_launched_from_cpp_as_from_python(
    library: ctypes.CDLL, case: dict[str, Any], start: int | None
) -> None:
    """start: of the third addend, laid out as the residual; None for one in a layout of its own."""
    x, residual, earlier = case["x"], case["residual"], case["other"]
    if start is not None:
        buffer = torch.zeros(start + residual.untyped_storage().nbytes(), dtype=x.dtype)
        earlier = torch.as_strided(buffer, residual.shape, residual.stride(), start)
    call = {"x": x, "residual": residual, "earlier": earlier, "weight": parameter(case, "weight"), "eps": EPS}
    call["weight_offset"] = case["offset"]
    python = FromCuda(case["pdl"]).launch("fused_add_two_rms_norm", **call)
    ours = functools.partial(torch.ops.serving_ops_fake.fused_add_two_rms_norm, **call)
    check_same_or_neither(library, python, ours)


def test_the_second_norm_of_a_pair_is_not_launched_where_its_tensors_share_memory(library: ctypes.CDLL) -> None:
    call = {name: torch.zeros(4, 128, dtype=torch.bfloat16) for name in ("x", "residual", "earlier")}
    call |= {"weight": None, "eps": EPS}
    python = FromCuda(pdl=True).launch("fused_add_two_rms_norm", **call, weight_offset=0.0)
    assert python is not None
    ours = torch.ops.serving_ops_fake.fused_add_two_rms_norm
    check_same(library, python, lambda: ours(**call))
    launches = library.fake_last().contents.launches
    for name, other in itertools.permutations(("x", "residual", "earlier"), 2):
        with pytest.raises(RuntimeError, match="overlap"):
            ours(**call | {name: call[other]})
        assert library.fake_last().contents.launches == launches, (name, other)


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
@pytest.mark.parametrize("shape", [(3, 5, 256), (6, 128), (0, 128), (128,)], ids=str)
def test_new_results_are_laid_out_as_the_format_has_it(
    library: ctypes.CDLL, fmt: QuantFormat, shape: tuple[int, ...]
) -> None:
    x, scale = torch.randn(shape).bfloat16(), torch.ones(()) if fmt.granularity == "tensor" else None
    fake, ours = torch.ops.serving_ops_fake, torch.ops.serving_ops
    options = {"eps": EPS, "fmt": fmt.text, "scale": scale}
    for name, rows in {"rms_norm_quant": (x, None), "rms_norm_gated_quant": (x, x, None)}.items():
        for got, want in zip(getattr(fake, name)(*rows, **options), getattr(ours, name)(*rows, **options), strict=True):
            assert (got.shape, got.stride(), got.dtype) == (want.shape, want.stride(), want.dtype)


@st.composite
def rotated_cases(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of `qk_norm_rope`: heads together or apart, in every form of rotation and cache."""
    tokens, size = draw(st.sampled_from([1, 2, 5, 2000])), draw(st.sampled_from([36, 64, 80, 128]))
    of_q, of_k = draw(st.sampled_from([1, 3, 4])), draw(st.sampled_from([1, 2]))
    dtype = draw(st.sampled_from([torch.bfloat16, torch.float16, torch.float32]))
    half = draw(st.sampled_from([size // 2, size // 4]))
    cached, separate, swapped = (draw(st.booleans()) for _ in range(3))
    heads = [(tokens, count * size) if draw(st.booleans()) else (tokens, count, size) for count in (of_q, of_k, of_k)]
    together = (tokens, (of_q + 2 * of_k) * size)
    weight_dtype = draw(st.sampled_from([None, dtype, torch.float32]))
    weights = [None if weight_dtype is None else torch.ones(size + 1, dtype=weight_dtype)[1:] for _ in range(2)]
    section = draw(st.sampled_from([None, (half - 2, 1, 1), (0, half, 0)]))
    three = section is not None and draw(st.booleans())
    positions = torch.zeros(3, 2 * tokens, dtype=draw(st.sampled_from([torch.int32, torch.int64])))[:, ::2]
    call = {
        "qkv": draw(rows_of(heads[0] if separate else together, dtype)),
        "positions": positions if three else positions[1],
        "cos_sin_cache": draw(rows_of((9, 2 * half), draw(st.sampled_from([dtype, torch.float32])))),
        "q_weight": weights[0],
        "k_weight": weights[1],
        **{"num_q_heads": of_q, "num_kv_heads": of_k, "head_dim": size, "eps": EPS},
        "weight_offset": draw(st.sampled_from([0.0, OFFSET])),
        "rotary_dim": draw(st.sampled_from([None, 2 * half])),
        "is_neox": draw(st.booleans()),
        "mrope_section": section,
        "mrope_interleaved": section is not None and draw(st.booleans()),
        "k": draw(rows_of(heads[1], dtype)) if separate else None,
        "v": draw(rows_of(heads[2], dtype)) if separate and cached else None,
    }
    return call | (draw(caches_of(dtype, tokens, (of_k, size), swapped)) if cached else {})


@st.composite
def caches_of(
    draw: st.DrawFn, dtype: torch.dtype, tokens: int, heads: tuple[int, int], swapped: bool
) -> dict[str, Any]:
    """Of one layout: apart, or both in one buffer with blocks that take turns."""
    slots, fp8 = draw(st.sampled_from([(3,), (4, 1), (1, 16), (4, 16)])), draw(st.booleans())
    both = torch.zeros(slots[0], 2, *slots[1:], *heads, dtype=torch.int8 if fp8 else dtype)
    if swapped and len(slots) == 2:
        both = both.transpose(2, 3).contiguous().transpose(2, 3)
    keys, values = both.view(FP8 if fp8 else dtype).unbind(1)
    if draw(st.booleans()):
        keys = keys.clone(memory_format=torch.preserve_format)
        values = torch.empty_strided(keys.shape, keys.stride(), dtype=keys.dtype)
    scaled = fp8 and draw(st.booleans())
    some = torch.zeros(draw(st.sampled_from([tokens, 1])), dtype=draw(st.sampled_from([torch.int32, torch.int64])))
    call = {"key_cache": keys, "value_cache": values, "slot_mapping": some}
    return call | ({"k_scale": torch.ones(()), "v_scale": torch.ones(1)} if scaled else {})


def launch_rope(call: dict[str, Any], pdl: bool) -> FromPython:
    """Has `serving_ops.cuda_rope` launch on CPU tensors, and keeps the launch."""
    python = FromPython(run_rope._launcher)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_rope, "_launcher", python)
        patch.setattr(cuda_rope, "converts_to_fp8", lambda device: True)
        patch.setattr(cuda_rope, "pdl", lambda device: pdl)
        patch.setattr(torch.cuda, "_DeviceGuard", lambda index: contextlib.nullcontext())
        operator = registry.find("qk_norm_rope")
        assert launched(operator, operator.bind((), call)) is None
    return python


def by_name(call: dict[str, Any]) -> Callable[[], object]:
    return functools.partial(torch.ops.serving_ops_fake.qk_norm_rope, **call)


def short(call: dict[str, Any]) -> Callable[[], object]:
    """The same call with its options as one text."""
    tensors = [call[name] for name in ("qkv", "positions", "cos_sin_cache", "q_weight", "k_weight")]
    width = {"rotary_dim": call["cos_sin_cache"].shape[1]}
    given = {name: value for name, value in call.items() if value is not None}
    text, fake = rope_text.options_text(given | width), torch.ops.serving_ops_fake
    if "key_cache" not in call:
        return functools.partial(fake.qk_norm_rope_short, *tensors, text)
    more = [call[name] for name in ("k", "v", "key_cache", "value_cache", "slot_mapping")]
    return functools.partial(fake.qk_norm_rope_short_cached, *tensors, text, *more)


@relaxed
@given(call=rotated_cases(), pdl=st.booleans())
def test_norms_with_rotation_are_launched_from_cpp_as_from_python(
    library: ctypes.CDLL, call: dict[str, Any], pdl: bool
) -> None:
    python = launch_rope(call, pdl)
    check_same(library, python, by_name(call))
    of_layers = "k_scale" not in call if "key_cache" in call else call["k"] is None
    if of_layers and call["q_weight"] is not None:
        check_same(library, python, short(call))


def plain_rotation(tokens: int = 4, *, cached: bool = True) -> dict[str, Any]:
    spec = NormSpec("qk_norm_rope", 64, torch.bfloat16, torch.bfloat16, torch.device("cpu"), heads=2)
    rotation = RopeSpec(num_kv_heads=1, separate=True, has_cache=cached, cache_dtype=FP8 if cached else None)
    return registry.sample(dataclasses.replace(spec, rotation=rotation), tokens)


def test_what_a_rotation_compiles_is_handed_to_cpp_whatever_was_launched_before() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "on_compiled", None)
        cuda.triton_kernels.cache_clear()
        launch_rope(plain_rotation(), pdl=False)
        assert launch.on_compiled is not None
    cuda.triton_kernels.cache_clear()  # what was there before the test may be no connection


def heads_take_turns(buffer: Tensor) -> dict[str, Tensor]:
    """q with a gate beside each head, then k and v, in one row a token."""
    gated, k, v = buffer.view(4, 6 * 64).split((4 * 64, 64, 64), dim=1)
    return {"qkv": gated.unflatten(1, (2, 128))[..., :64], "k": k, "v": v}


def test_heads_that_lie_beside_each_other_are_launched_from_cpp(library: ctypes.CDLL) -> None:
    call = plain_rotation() | heads_take_turns(torch.zeros(4 * 6 * 64, dtype=torch.bfloat16))
    check_same(library, launch_rope(call, pdl=True), by_name(call))


def test_a_rotation_whose_tensors_share_memory_is_not_launched(library: ctypes.CDLL) -> None:
    """Though its kernel is there: Python says what is wrong."""
    call = plain_rotation()
    check_same(library, launch_rope(call, pdl=True), by_name(call))
    last = library.fake_last().contents
    launches = last.launches
    tensors = {name: value for name, value in call.items() if isinstance(value, Tensor)}
    written = {"qkv", "k", "key_cache", "value_cache"}
    for name, other in itertools.permutations(tensors, 2):
        if written.isdisjoint((name, other)):
            continue
        shared = torch.zeros(8192, dtype=torch.uint8)
        spoilt = {n: shared[: tensors[n].nbytes].view(tensors[n].dtype).view(tensors[n].shape) for n in (name, other)}
        with pytest.raises(RuntimeError, match="overlap"):
            torch.ops.serving_ops_fake.qk_norm_rope(**call | spoilt)
        assert last.launches == launches, (name, other)


def test_more_heads_than_a_grid_holds_are_not_launched(library: ctypes.CDLL) -> None:
    """Though the kernel of fewer heads is there, which is the same."""

    def call(heads: int) -> dict[str, Any]:
        one = plain_rotation(1, cached=False)
        return one | {"qkv": torch.zeros(1, heads, 64, dtype=torch.bfloat16), "num_q_heads": heads}

    most, more = call(cuda_rope.MAX_HEADS), call(cuda_rope.MAX_HEADS + 1)
    check_same(library, launch_rope(most, pdl=True), by_name(most))
    last = library.fake_last().contents
    launches, operator = last.launches, registry.find("qk_norm_rope")
    torch.ops.serving_ops_fake.qk_norm_rope(**more)
    assert last.launches == launches
    assert launched(operator, operator.bind((), more)) == cuda_rope.TOO_MANY_HEADS


def wrong_rotations(call: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What is wrong, and the arguments that make it so."""

    def like(name: str, **other: Any) -> dict[str, Any]:
        return {name: torch.zeros(other.pop("shape", call[name].shape), **{"dtype": call[name].dtype} | other)}

    changes = {
        f"{name} of another dtype": like(name, dtype=torch.float64) for name, v in call.items() if isinstance(v, Tensor)
    }
    changes |= {
        f"{name} of another shape": like(name, shape=(5, 2, 3)) for name, v in call.items() if isinstance(v, Tensor)
    }
    changes |= {
        f"no {name}": {name: None}
        for name in call
        if name in {"q_weight", "v", "value_cache", "slot_mapping", "v_scale"}
    }
    changes |= {f"{name} of 0": {name: 0} for name in ("num_q_heads", "num_kv_heads", "head_dim")}
    return changes | {
        "v without k": {"k": None},
        "an odd rotary_dim": {"rotary_dim": 63},
        "sections of another sum": {"mrope_section": (16, 16, 16)},
        "two sections": {"mrope_section": (16, 16)},
        "interleaved sections that are not given": {"mrope_interleaved": True},
        "three positions without sections": like("positions", shape=(3, 4)),
    }


def test_a_rotation_that_no_kernel_takes_is_not_launched(library: ctypes.CDLL) -> None:
    call = plain_rotation()
    check_same(library, launch_rope(call, pdl=True), by_name(call))
    last = library.fake_last().contents
    launches = last.launches
    for change in (
        {"slot_mapping": torch.arange(8)[::2]},
        {"value_cache": torch.zeros(16, 2, 64, dtype=torch.int8).view(FP8).unflatten(0, (1, 16))[:, :, :1]},
        {"k_weight": torch.ones(64)},
        {"cos_sin_cache": torch.ones(8, 128, dtype=torch.bfloat16)[:, ::2]},
        {"k": torch.zeros(4, 128, dtype=torch.bfloat16)[:, ::2]},
    ):
        torch.ops.serving_ops_fake.qk_norm_rope(**call | change)
        assert last.launches == launches, [*change]


@pytest.mark.parametrize(
    "text", ["", "2 1 64", "2 1 64 64 1 0 1 -20 0 0 8", "2 1 64 64 1 0 1 -20 0 x", "2 1 64 64 1 0 1 -20 0 0 16 8 8 1"]
)
def test_options_of_another_form_are_said_and_not_launched(library: ctypes.CDLL, text: str) -> None:
    call, last = plain_rotation(cached=False), library.fake_last().contents
    launches = last.launches
    tensors = (call[name] for name in ("qkv", "positions", "cos_sin_cache", "q_weight", "k_weight"))
    rope_text.define()
    with pytest.raises(RuntimeError):
        torch.ops.serving_ops_fake.qk_norm_rope_short(*tensors, text)
    assert last.launches == launches


def test_a_wrong_rotation_is_said_and_not_launched(library: ctypes.CDLL) -> None:
    call = plain_rotation()
    check_same(library, launch_rope(call, pdl=True), by_name(call))
    last = library.fake_last().contents
    launches = last.launches
    for wrong, change in wrong_rotations(call).items():
        with pytest.raises(RuntimeError, match=r"serving_ops: .* is "):
            torch.ops.serving_ops_fake.qk_norm_rope(**call | change)
        assert last.launches == launches, wrong


def vllms(case: dict[str, Any], weight: Tensor, residual: Tensor | None) -> Callable[[], object]:
    """The same call of the operator that has the schema of vLLM's."""
    fmt, fake = case["fmt"], torch.ops.serving_ops_fake
    options = {"result": case["out"], "input": case["x"], "weight": weight, "scale": case["scales_out"], "epsilon": EPS}
    options |= {"scale_ub": None, "residual": residual}
    if fmt.granularity == "token":
        return functools.partial(fake.vllm_rms_norm_dynamic_per_token_quant, **options)
    block = {"group_size": fmt.group_size, "is_scale_transposed": fmt.scale_layout != "row_major"}
    return functools.partial(fake.vllm_rms_norm_per_block_quant, **options, **block)


@relaxed
@given(case=quantized_cases(), fused=st.booleans())
def test_vllms_fused_norms_are_launched_from_cpp_as_from_python(
    library: ctypes.CDLL, case: dict[str, Any], fused: bool
) -> None:
    fmt, weight = case["fmt"], parameter(case, "weight")
    if fmt.granularity == "tensor" or fmt.scale_format != "fp32" or weight is None:
        return
    case |= {"normed": None, "offset": 0.0}
    residual = case["residual"] if fused else None
    options = {"x": case["x"], "weight": weight, "eps": EPS, "weight_offset": 0.0}
    options |= {"residual": residual} if fused else {}
    python = FromCuda(case["pdl"]).launch(NAMES[fused], **options, **written(case))
    check_same_or_neither(library, python, vllms(case, weight, residual))


def test_a_call_whose_tensors_share_memory_is_not_launched(library: ctypes.CDLL) -> None:
    """Though its kernel is there: Python says what is wrong."""
    x, residual, normed = (torch.zeros(4, 128, dtype=torch.bfloat16) for _ in range(3))
    case = {"fmt": QuantFormat(), "scale": None, "out": torch.zeros(4, 128, dtype=torch.int8).view(FP8)}
    case |= {"x": x, "normed": normed, "scales_out": torch.zeros(4, 1)}
    rows = {"x": x, "residual": residual, "weight": torch.zeros(128, dtype=torch.bfloat16), "eps": EPS}
    python = FromCuda(pdl=True).launch(NAMES[True], **rows, weight_offset=0.0, **written(case))
    assert python is not None
    call, last = torch.ops.serving_ops_fake.fused_add_rms_norm_quant.out, library.fake_last().contents
    given = rows | flat(case)
    check_same(library, python, lambda: call(**given))
    launches = last.launches
    tensors = {name: value for name, value in given.items() if isinstance(value, Tensor)}
    for name, other in itertools.permutations(tensors, 2):
        if name in {"x", "weight"}:
            continue
        shared = torch.zeros(4096, dtype=torch.uint8)
        spoilt = {n: shared[8 * (n == name) :][: tensors[n].nbytes] for n in (name, other)}
        spoilt = {n: part.view(tensors[n].dtype).view(tensors[n].shape) for n, part in spoilt.items()}
        with pytest.raises(RuntimeError, match="overlap"):
            call(**given | spoilt)
        assert last.launches == launches, (name, other)
    with pytest.raises(RuntimeError, match="no two elements of out"):
        call(**given | {"out": given["out"][:1].expand(4, 128)})
    assert last.launches == launches


@pytest.mark.parametrize(
    "wrong",
    [{"scale": torch.ones(())}, {"scales_out": torch.zeros(4, 2)}, {"scales_out": torch.zeros(4, 1, dtype=torch.int32)},
     {"out": torch.zeros(4, 128, dtype=torch.int8)}, {"fmt": "float8_e4m3fn block 128 fp32 row_major"},
     {"fmt": "float8_e4m3fn group 32 fp32 row_major"}, {"fmt": "float8_e5m2 group 128 fp32 row_major"},
     {"fmt": "float8_e4m3fn group 128 fp16 row_major"}, {"fmt": "float8_e4m3fn group 128 fp32 tiled"},
     {"fmt": "float8_e4m3fn tensor 128 ue8m0 row_major"}, {"fmt": ""}, {"fmt": "int8 token 128 fp32 row_major more"}],
    ids=str,
)  # fmt: skip
def test_a_wrong_format_or_result_is_said_and_not_launched(library: ctypes.CDLL, wrong: dict[str, Any]) -> None:
    last, x = library.fake_last().contents, torch.zeros(4, 128, dtype=torch.bfloat16)
    given = {"fmt": QuantFormat().text, "out": torch.zeros(4, 128, dtype=torch.int8).view(FP8)}
    given |= {"scales_out": torch.zeros(4, 1)}
    launches = last.launches
    with pytest.raises(RuntimeError, match=r"serving_ops: (scale|scales_out|out|dtype|granularity|group_size)"):
        torch.ops.serving_ops_fake.rms_norm_quant.out(x, None, EPS, **given | wrong)
    assert last.launches == launches


FRESH = -1
"""The device of a thread that has not used CUDA."""

INVALID_VALUE = 1


@pytest.fixture
def devices(library: ctypes.CDLL) -> Iterator[Callable[..., None]]:
    """Puts tensors on one device and the thread on another, and adds a variant for `rms_norm` of (3, 64) fp32."""

    def put(*, tensors: int, thread: int, result: int = 0) -> None:
        library.fake_devices(tensors, thread, result)
        flags = 1 << contract.FLAGS["flat"] | 1 << contract.FLAGS["aligned"] | tensors << contract.FLAGS["device"]
        library.fake_add(flags, 64, 64, 1, plan.MAX_ROWS, 1, next(_functions), 1, 0, 0, b"", 0)

    yield put
    library.fake_devices(0, 0, 0)


@pytest.mark.parametrize("thread", [0, 2, FRESH])
def test_a_device_that_is_not_current_is_made_so_for_the_launch(
    library: ctypes.CDLL, devices: Callable[..., None], thread: int
) -> None:
    devices(tensors=1, thread=thread)
    last, x = library.fake_last().contents, torch.zeros(3, 64)
    launches, pushes = last.launches, last.pushes
    torch.ops.serving_ops_fake.rms_norm.out(x, None, out=torch.zeros(3, 64))
    assert (last.launches, last.pushes) == (launches + 1, pushes + 1)
    assert last.context == 0x101
    assert library.fake_current() == thread


def test_a_current_device_is_left_alone(library: ctypes.CDLL, devices: Callable[..., None]) -> None:
    devices(tensors=1, thread=1)
    last, x = library.fake_last().contents, torch.zeros(3, 64)
    launches, pushes = last.launches, last.pushes
    torch.ops.serving_ops_fake.rms_norm.out(x, None, out=torch.zeros(3, 64))
    assert (last.launches, last.pushes) == (launches + 1, pushes)


def test_a_failed_launch_gives_the_device_back(library: ctypes.CDLL, devices: Callable[..., None]) -> None:
    devices(tensors=1, thread=0, result=INVALID_VALUE)
    with pytest.raises(RuntimeError, match="CUresult 1"):
        torch.ops.serving_ops_fake.rms_norm.out(torch.zeros(3, 64), None, out=torch.zeros(3, 64))
    assert library.fake_current() == 0
