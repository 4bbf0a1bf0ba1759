"""Our kernels in the table of vLLM's pass that fuses a norm with the FP8 quantization after it.

The pass replaces both by an operator from its table. Our operators have the schemas of the `_C` operators that they
replace. vLLM still decides what to fuse and whether the pass runs; by default it runs for FP8 in blocks.

The pass hands over the residual by value, and vLLM turns only calls of operators that it knows back into calls in
place. We do the same for our operators. Otherwise each piece of a graph copies its first residual, which takes 0.9 us a
layer on an H200; vLLM makes this copy for `_C.rms_norm_per_block_quant`.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from serving_ops import NormSpec, QuantFormat, extension, schemas
from serving_ops.integrations.common import guard
from serving_ops.integrations.common.norm_classes import NORMS
from serving_ops.integrations.common.norm_layers import prewarm
from serving_ops.integrations.vllm import features, installed, linear_kernels
from serving_ops.integrations.vllm.compilation import is_in_pieces

_logger = logging.getLogger("vllm.serving_ops")

NAME = "quant_fusion"

BLOCK = "vllm_rms_norm_per_block_quant"
TOKEN = "vllm_rms_norm_dynamic_per_token_quant"
_TOKEN_ARGUMENTS = (
    "Tensor(a!) result, Tensor input, Tensor weight, Tensor(b!) scale, float epsilon, Tensor? scale_ub, "
    "Tensor(c!)? residual"
)
ARGUMENTS = {TOKEN: _TOKEN_ARGUMENTS, BLOCK: f"{_TOKEN_ARGUMENTS}, int group_size, bool is_scale_transposed"}
"""As `_C`'s operators have them, whose names lack the prefix `vllm_`. vLLM passes arguments by name."""

WRITTEN = {1: "result", 2: "scale", 3: "residual"}
"""The results of vLLM's functional form of such a call: position -> argument."""


@functools.cache
def _format(dtype: torch.dtype, group_size: int | None) -> QuantFormat:
    """Of a scale a token, or a group."""
    if group_size is None:
        return QuantFormat(dtype=dtype, granularity="token")
    return QuantFormat(dtype=dtype, group_size=group_size)


def _norm_then_quantize(
    result: Tensor,
    input: Tensor,
    weight: Tensor,
    scale: Tensor,
    epsilon: float,
    scale_ub: Tensor | None,
    residual: Tensor | None,
    group_size: int | None = None,
    is_scale_transposed: bool = False,
) -> None:
    """Either operator; vLLM's pass never gives an upper bound of the scale.

    The scales are written where they lie: their strides say whether they are transposed.
    """
    if scale_ub is not None:
        raise RuntimeError(f"serving_ops: scale_ub is {scale_ub}: it must be None")
    name = "rms_norm_quant" if residual is None else "fused_add_rms_norm_quant"
    rows = (input,) if residual is None else (input, residual)
    options: dict[str, Any] = {"weight": weight, "eps": epsilon, "fmt": _format(result.dtype, group_size).text}
    getattr(torch.ops.serving_ops, name).out(*rows, **options, out=result, scales_out=scale)


@functools.cache
def define() -> tuple[Any, ...]:
    """Define the two operators, once per process, and return them: one scale per token, and one per block.

    On CUDA the C++ library implements them, and calls their fallback where it has no compiled kernel yet.
    """
    for name, arguments in ARGUMENTS.items():
        schemas.define(f"{name}({arguments}) -> ()", _norm_then_quantize, lambda *_, **__: None)
        schemas.define_fallback(name, arguments, _norm_then_quantize)
    return tuple(getattr(torch.ops.serving_ops, name).default for name in (TOKEN, BLOCK))


def can_run() -> bool:
    """Return whether our kernels may serve vLLM's pass on this device, with the ops that are ours.

    A launch from Python would take longer than vLLM's: a prompt beyond the captured sizes waits for it in each layer.
    """
    from vllm.platforms import current_platform

    on_device = current_platform.is_cuda() and current_platform.has_device_capability(89)
    return bool(on_device and extension.cpp_library() is not None and features.ops().issuperset(NORMS))


def is_for(vllm_config: Any) -> bool:
    """Return whether vLLM's pass fuses this model's norms with FP8 quantization, and our kernels may serve it."""
    compilation = vllm_config.compilation_config
    asked_for = getattr(compilation.pass_config, "fuse_norm_quant", False)  # also in eager mode, which has no passes
    return can_run() and bool(asked_for) and is_in_pieces(compilation)


def take(fused: Sequence[NormSpec]) -> None:
    """Prewarm what vLLM's pass may make of a loaded model's norms, and put our operators into the pass.

    vLLM looks the operators up when it first compiles, which is later. Raises RuntimeError where the prewarm fails, and
    as `install`; `_C`'s operators stay then.
    """
    failed = prewarm(fused, _logger)
    if failed:
        installed.failures[NAME] = next(iter(failed.values()))  # cached graphs are told apart by it
        raise RuntimeError(installed.failures[NAME])
    install()


def specs(models: Iterable[torch.nn.Module], plain: Iterable[NormSpec], vllm_config: Any) -> list[NormSpec]:
    """Return the quantized norms that the pass may build of plain norms of whole rows, as linear layers want them.

    As `_C`'s operators, ours round before the weight too, so they have no offset, and another kernel than with one.
    """
    formats = list(dict.fromkeys(filter(None, map(_wanted, linear_kernels.quantized_linears(models)))))
    rows = of_whole_rows(plain, vllm_config.model_config)
    changes = [{"fmt": fmt, "weight_offset": 0.0} for fmt in formats]
    quantized = (dataclasses.replace(spec, op=f"{spec.op}_quant", **change) for change in changes for spec in rows)
    return list(dict.fromkeys(quantized))


def of_whole_rows(plain: Iterable[NormSpec], model: Any) -> list[NormSpec]:
    """Return the norms of hidden states, as the pass knows them."""
    return [spec for spec in plain if spec.op in NORMS and spec.heads == 1 and spec.size == model.get_hidden_size()]


def _wanted(linear: Any) -> QuantFormat | None:
    """Return what a linear layer's input becomes, or None where the pass calls none of our operators for it."""
    kernel = linear_kernels.kernel_of(linear)
    if not getattr(kernel, "apply_input_quant", True):  # it quantizes inside its product, as FlashInfer's
        return None
    config = getattr(kernel, "config", None)
    scale = getattr(getattr(config, "activation_quant_key", None), "scale", None)
    if scale is None or scale.static or scale.group_shape.row != 1:
        return None
    group = scale.group_shape.col
    return QuantFormat(granularity="token") if group < 0 else QuantFormat(group_size=group)


def install() -> None:
    """Put our operators into the table of vLLM's pass, and have calls of them made in place.

    Raises ImportError or AttributeError where this vLLM's pass is not what ours were written for.
    """
    from vllm.compilation.passes.fusion import rms_quant_fusion as fusion
    from vllm.compilation.passes.utility.fix_functionalization import FixFunctionalizationPass

    token, block = define()
    ours = {fusion.kFp8DynamicTokenSym: token, fusion.kFp8Dynamic128Sym: block, fusion.kFp8Dynamic64Sym: block}
    keys = [fusion.FusedRMSQuantKey(quant, fused) for quant in ours for fused in (False, True)]
    missing = [str(key) for key in keys if key not in fusion.FUSED_OPS]
    if missing:
        raise AttributeError(f"vLLM's table of fused norms has no {missing[0]}")
    for key in keys:
        wanted, taken = (_names(operator) for operator in (fusion.FUSED_OPS[key], ours[key.quant]))
        if wanted != taken:
            raise AttributeError(f"vLLM's fused norm {key} takes ({wanted}), not ({taken})")
    installed.wrap(FixFunctionalizationPass, "__call__", _in_place)
    for key in keys:
        installed.put(fusion.FUSED_OPS, key, ours[key.quant])


def _names(operator: Any) -> str:
    """Return the names of an operator's arguments."""
    return ", ".join(argument.name for argument in operator._schema.arguments)


def _in_place(original: Any) -> Any:
    @functools.wraps(original)
    def with_ours_in_place(self: Any, graph: torch.fx.Graph) -> None:
        with guard.unless_strict("vLLM", "call its fused norms in place"):
            call_in_place(self, graph)
        original(self, graph)

    return with_ours_in_place


def call_in_place(vllms_pass: Any, graph: torch.fx.Graph) -> None:
    """Turn functional calls of our operators into calls in place."""
    from torch._higher_order_ops.auto_functionalize import auto_functionalized

    vllms_pass.nodes_to_remove = []
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target is auto_functionalized and node.args[0] in define():
            vllms_pass.defunctionalize(graph, node, WRITTEN)
    for node in vllms_pass.nodes_to_remove:
        graph.erase_node(node)
    vllms_pass.nodes_to_remove.clear()
