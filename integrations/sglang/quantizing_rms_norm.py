"""SGLang's `RMSNorm` where the projection after it quantizes its input: both in one kernel of ours.

The norm returns `Rows`, and the projection's method, which we wrap, multiplies them without quantizing again. Only the
norms of known decoder layers are paired, which pass the norm's result to this one projection and read no more of it
than `Rows` has. What a call brings beyond that is normed as in `rms_norm`, and the projection quantizes it itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from serving_ops import NormSpec, QuantFormat, settings
from serving_ops.integrations.common import guard
from serving_ops.integrations.common.calls import may_add, rows_fit
from serving_ops.integrations.common.norm_classes import WEIGHT_IN_FP32, Activations, rms_norm_specs, why_reference
from serving_ops.integrations.common.record import Installed
from serving_ops.integrations.sglang import projections, server_args
from serving_ops.integrations.sglang.adapters import RMS_NORM, Adapter, given, rms_norm
from serving_ops.integrations.sglang.projections import NOT_QUANTIZED, Prequantized

ATTENTION = ("input_layernorm", "self_attn.qkv_proj")
MLP = ("post_attention_layernorm", "mlp.gate_up_proj")

PAIRED: dict[str, tuple[tuple[str, str], ...]] = {
    "sglang.srt.models.llama.LlamaDecoderLayer": (ATTENTION, MLP),
    "sglang.srt.models.qwen2.Qwen2DecoderLayer": (ATTENTION, MLP),
    "sglang.srt.models.qwen3.Qwen3DecoderLayer": (ATTENTION, MLP),
    "sglang.srt.models.qwen3_moe.Qwen3MoeDecoderLayer": (ATTENTION,),  # a router reads the other norm's result too
}
"""A decoder layer -> its norms, and for each the only reader of its result."""

LORA = "LoRA reads its result too"
NOT_WITH = {
    "enable_lora": LORA,
    "lora_paths": LORA,
    "uno_lora_path": LORA,
    "debug_tensor_dump_output_folder": "a dump of tensors reads its result",
    "enable_dp_attention": "data-parallel attention gathers its result",
    "enable_two_batch_overlap": "two-batch overlap splits its result",
}
"""An argument of the server -> why no norm is paired."""


class Rows(tuple[Tensor, Tensor, torch.dtype]):
    """Quantized rows in place of a tensor: q, its scales, and the dtype that the rows had."""

    __slots__ = ()

    shape = property(lambda self: self[0].shape)
    dtype = property(lambda self: self[2])
    device = property(lambda self: self[0].device)
    is_cuda = property(lambda self: self[0].is_cuda)

    def numel(self) -> int:
        """As q's."""
        return self[0].numel()


@dataclass(frozen=True)
class Pair:
    """A norm whose result one projection reads, and how that takes quantized rows, or why the norm stays plain."""

    projection: Any
    form: Prequantized | str

    def connect(self, changes: Installed) -> None:
        """Have the projection take `Rows`."""
        assert not isinstance(self.form, str)
        changes.wrap(self.projection.quant_method, "apply", partial(_taking_rows, self.form.product))


def _taking_rows(product: projections.Product, own: Callable[..., Any]) -> Callable[..., Any]:
    def apply(layer: Any, x: Any, bias: Tensor | None = None) -> Any:
        return product(layer, *x, bias) if type(x) is Rows else own(layer, x, bias)

    return apply


def pairs(runner: Any, x: Activations) -> dict[torch.nn.Module, Pair]:
    """Return the pairs of a loaded model by norm, without those whose projection is not quantized.

    Raises RuntimeError in strict mode where a product fails.
    """
    why_none = _why_none(server_args.resolved(runner))
    found, failures = {}, {}
    for norm, projection in _norms_and_projections(runner.model):
        form = projections.prequantized(projection, x.dtype)
        if form == NOT_QUANTIZED:
            continue
        form = why_none or _with_kernels(norm, form, x)
        if not isinstance(form, str):
            kind = type(projection.quant_method), form.fmt
            if kind not in failures:
                failures[kind] = _why_failing(norm, projection, form, x.dtype)
            form = failures[kind] or form
        found[norm] = Pair(projection, form)
    return found


@torch.inference_mode()
def _why_failing(norm: Any, projection: Any, form: Prequantized, dtype: torch.dtype) -> str | None:
    """Norm a row and multiply it. Returns why that fails, or None: the server would stop at it later."""
    row = torch.ones(1, norm.weight.numel(), dtype=dtype, device=norm.weight.device)
    try:
        form.product(projection, *adapter(projection, form.fmt).forward(norm, row), None)
    except Exception as error:
        reason = f"its projection failed with a quantized row: {guard.reason_of(error)}"
        if settings.mode() == "strict":
            raise RuntimeError(reason) from error
        return reason
    return None


def _norms_and_projections(model: torch.nn.Module) -> Iterator[tuple[torch.nn.Module, torch.nn.Module]]:
    for layer in model.modules():
        for norm, projection in PAIRED.get(f"{type(layer).__module__}.{type(layer).__qualname__}", ()):
            yield layer.get_submodule(norm), layer.get_submodule(projection)


def _why_none(args: Any) -> str | None:
    for name, reason in NOT_WITH.items():
        if getattr(args, name, None):
            return reason
    if getattr(args, "tp_size", 1) > 1 or getattr(args, "attn_cp_size", 1) > 1:
        return "not tried with several ranks"
    return server_args.why_traced(args)


def _with_kernels(norm: Any, form: Prequantized | str, x: Activations) -> Prequantized | str:
    return form if isinstance(form, str) else why_reference(_specs(norm, x, form.fmt)) or form


def _specs(norm: Any, x: Activations, fmt: QuantFormat) -> list[NormSpec]:
    return [dataclasses.replace(spec, op=f"{spec.op}_quant", fmt=fmt) for spec in rms_norm_specs(norm, x)]


def adapter(projection: Any, fmt: QuantFormat) -> Adapter:
    """Return the adapter of a norm that quantizes for a projection."""
    text, is_static, fixed = fmt.text, fmt.granularity == "tensor", {"weight_offset": WEIGHT_IN_FP32}
    ops = torch.ops.serving_ops
    norm_quant, fused_add_norm_quant = ops.rms_norm_quant.default, ops.fused_add_rms_norm_quant.default

    def specs(norm: Any, x: Activations) -> tuple[NormSpec, ...]:
        return (*_specs(norm, x, fmt), *rms_norm_specs(norm, x))

    def forward(norm: Any, x: Tensor, residual: Tensor | None = None, *more: Any, **others: Any) -> Any:
        """`RMSNorm.forward`, x (tokens, N): `Rows`; with a residual like x, that is written and returned too."""
        fits = x.dim() == 2 and x.shape[0] > 0 and rows_fit(x, norm.weight) and not given(more, others)
        if not fits or (residual is not None and not may_add(x, residual)):
            return rms_norm(norm, x, residual, *more, **others)
        options = fixed | {"scale": projection.input_scale} if is_static else fixed
        if residual is None:
            q, scales = norm_quant(x, norm.weight, norm.variance_epsilon, text, **options)
        else:
            q, scales = fused_add_norm_quant(x, residual, norm.weight, norm.variance_epsilon, text, **options)
        rows = Rows((q, options.get("scale", scales), x.dtype))
        return rows if residual is None else (rows, residual)

    return dataclasses.replace(RMS_NORM, name=f"RMSNorm with {_name(fmt)}", specs=specs, forward=forward)


def _name(fmt: QuantFormat) -> str:
    dtype = "INT8" if fmt.dtype == torch.int8 else "FP8"
    parts = {"tensor": "with a static scale", "token": "per token", "group": f"in groups of {fmt.group_size}"}
    return f"{dtype} {parts[fmt.granularity]}"
