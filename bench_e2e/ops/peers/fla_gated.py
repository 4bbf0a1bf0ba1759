"""flash-linear-attention's gated norms: layernorm_gated, which engines carry, and the newer fused_norm_gate.

Both take rows of head_dim: a strided z is copied to rows within the call, as the engines do.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial

from torch import Tensor

from serving_ops.bench_e2e.ops.cases import GATED, Case
from serving_ops.bench_e2e.ops.contestants import Call, Contestant, Norm, Unsupported
from serving_ops.bench_e2e.ops.inputs import EPS, Inputs
from serving_ops.bench_e2e.ops.peers import installed, trained

Rows = Callable[[Tensor, Tensor, Tensor, Tensor], object]  # of x, z, weight, out; x and out as rows


def contestants() -> list[Contestant]:
    layernorm_forward = importlib.import_module("fla.modules.layernorm_gated").layer_norm_fwd
    gate_forward = importlib.import_module("fla.modules.fused_norm_gate").layer_norm_gated_fwd

    def layernorm_gated(x: Tensor, z: Tensor, weight: Tensor, out: Tensor) -> None:
        layernorm_forward(x, weight, None, EPS, z=z.reshape(x.shape), out=out, is_rms_norm=True)

    def fused_norm_gate(x: Tensor, z: Tensor, weight: Tensor, out: Tensor) -> object:
        return gate_forward(x, z.reshape(x.shape), weight, None, "swish", EPS, is_rms_norm=True)[0]

    version = installed.version("fla-core", "flash-linear-attention")
    return [
        Contestant("FLA layernorm_gated", version, partial(_bind, layernorm_gated)),
        Contestant("FLA fused_norm_gate", version, partial(_bind, fused_norm_gate)),
    ]


def _bind(norm: Rows, case: Case, inputs: Inputs) -> Call:
    if case.op != GATED:
        raise Unsupported("gated norms only")
    assert inputs.z is not None
    assert inputs.weight is not None
    assert inputs.out is not None
    rows = (case.rows, case.size)
    return partial(norm, inputs.x.view(rows), inputs.z, inputs.weight, inputs.out.view(rows))


def with_gradients() -> list[Contestant]:
    layernorm_gated = importlib.import_module("fla.modules.layernorm_gated").rmsnorm_fn
    fused_norm_gate = importlib.import_module("fla.modules.fused_norm_gate").rms_norm_gated
    version = installed.version("fla-core", "flash-linear-attention")
    guard: dict[str, Norm] = {GATED: lambda x, z, weight: layernorm_gated(x, weight, None, z=z, eps=EPS)}
    gate: dict[str, Norm] = {GATED: lambda x, z, weight: fused_norm_gate(x, z, weight, None, eps=EPS)}
    return [
        Contestant("FLA layernorm_gated", version, trained(guard)),
        Contestant("FLA fused_norm_gate", version, trained(gate)),
    ]
