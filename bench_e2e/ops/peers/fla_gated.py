"""flash-linear-attention's gated norms: layernorm_gated, which engines carry, and the newer fused_norm_gate.

Without gradients both take rows of head_dim: a strided z is copied to rows within the call, as the engines do.
"""

from __future__ import annotations

import importlib
from functools import partial

from torch import Tensor

from serving_ops.bench_e2e.ops.cases import GATED
from serving_ops.bench_e2e.ops.contestants import Call, Contestant
from serving_ops.bench_e2e.ops.inputs import EPS, Inputs
from serving_ops.bench_e2e.ops.peers import offered, trained, version

VERSION_OF = ("fla-core", "flash-linear-attention")


def contestants() -> list[Contestant]:
    layernorm_forward = importlib.import_module("fla.modules.layernorm_gated").layer_norm_fwd
    gate_forward = importlib.import_module("fla.modules.fused_norm_gate").layer_norm_gated_fwd

    def layernorm_gated(x: Tensor, z: Tensor, weight: Tensor, out: Tensor) -> None:
        layernorm_forward(x, weight, None, EPS, z=z.reshape(x.shape), out=out, is_rms_norm=True)

    def fused_norm_gate(x: Tensor, z: Tensor, weight: Tensor, out: Tensor) -> object:
        return gate_forward(x, z.reshape(x.shape), weight, None, "swish", EPS, is_rms_norm=True)[0]

    def on_rows(norm: object, inputs: Inputs) -> Call:
        assert inputs.out is not None
        rows = (-1, inputs.x.shape[-1])
        return partial(norm, inputs.x.view(rows), inputs.z, inputs.weight, inputs.out.view(rows))  # type: ignore[call-overload]

    norms = {"FLA layernorm_gated": layernorm_gated, "FLA fused_norm_gate": fused_norm_gate}
    of = version(*VERSION_OF)
    return [Contestant(name, of, offered({GATED: partial(on_rows, norm)})) for name, norm in norms.items()]


def with_gradients() -> list[Contestant]:
    layernorm_gated = importlib.import_module("fla.modules.layernorm_gated").rmsnorm_fn
    fused_norm_gate = importlib.import_module("fla.modules.fused_norm_gate").rms_norm_gated
    norms = {
        "FLA layernorm_gated": lambda x, z, weight: layernorm_gated(x, weight, None, z=z, eps=EPS),
        "FLA fused_norm_gate": lambda x, z, weight: fused_norm_gate(x, z, weight, None, eps=EPS),
    }
    of = version(*VERSION_OF)
    return [Contestant(name, of, trained({GATED: norm})) for name, norm in norms.items()]
