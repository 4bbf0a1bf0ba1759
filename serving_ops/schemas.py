"""The operators' schemas, each defined once, in the `serving_ops` namespace.

The mutating overloads return nothing: PyTorch's functionalization takes operators that mutate, and operators
that return fresh tensors, but not results that alias arguments.

The `..._trainable` operators compute the same with gradients, for exported graphs (see `serving_ops.autograd`).

The `_..._fallback` operators serve the C++ kernels: what those do not take goes there, and the text that comes
back is empty, or the message of an error (exceptions cross LibTorch's stable ABI only from torch 2.13 on).
The `_..._refusal` operators take the same arguments and ask C++ why it would hand them over; empty where it would not.
"""

from __future__ import annotations

import re

import torch

library = torch.library.Library("serving_ops", "DEF")

_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)
_GATED = (
    "Tensor x, Tensor? z, Tensor? weight, float eps=1e-6, *, Tensor? bias=None, bool norm_before_gate=True, "
    'str activation="silu", int? group_size=None'
)

SCHEMAS = (
    "fused_add_rms_norm(Tensor(a!) x, Tensor(b!) residual, Tensor? weight, float eps=1e-6, *, "
    "float weight_offset=0.0) -> ()",
    "add_rms_norm(Tensor x, Tensor residual, Tensor? weight, float eps=1e-6, *, float weight_offset=0.0) "
    "-> (Tensor, Tensor)",
    "rms_norm(Tensor x, Tensor? weight, float eps=1e-6, *, float weight_offset=0.0) -> Tensor",
    "rms_norm.out(Tensor x, Tensor? weight, float eps=1e-6, *, float weight_offset=0.0, Tensor(a!) out) -> ()",
    f"rms_norm_gated({_GATED}) -> Tensor",
    f"rms_norm_gated.out({_GATED}, Tensor(a!) out) -> ()",
)
TRAINABLE_SCHEMAS = (
    "rms_norm_trainable(Tensor x, Tensor? weight, float eps, float weight_offset) -> Tensor",
    "add_rms_norm_trainable(Tensor x, Tensor residual, Tensor? weight, float eps, float weight_offset) "
    "-> (Tensor, Tensor)",
    "rms_norm_gated_trainable(Tensor x, Tensor? z, Tensor? weight, Tensor? bias, float eps, bool norm_before_gate, "
    "str activation, int? group_size) -> Tensor",
)
BACKWARD_SCHEMAS = (
    "rms_norm_backward(Tensor dout, Tensor s, Tensor? weight, float eps, *, float weight_offset, "
    "Tensor? ds_more) -> (Tensor, Tensor)",
    "rms_norm_gated_backward(Tensor dout, Tensor x, Tensor? z, Tensor? weight, float eps, *, Tensor? bias, "
    "bool norm_before_gate, str activation, int? group_size) -> (Tensor, Tensor, Tensor, Tensor)",
)
FALLBACK_SCHEMAS = (
    "_fused_add_rms_norm_fallback(Tensor(a!) x, Tensor(b!) residual, Tensor? weight, float eps, "
    "float weight_offset) -> str",
    "_rms_norm_fallback(Tensor x, Tensor? weight, float eps, float weight_offset, Tensor(a!) out) -> str",
    "_rms_norm_gated_fallback(Tensor x, Tensor? z, Tensor? weight, float eps, Tensor? bias, "
    "bool norm_before_gate, str activation, int? group_size, Tensor(a!) out) -> str",
)
BACKWARD_FALLBACK_SCHEMAS = (
    "_rms_norm_backward_fallback(Tensor dout, Tensor s, Tensor? weight, float eps, float weight_offset, "
    "Tensor? ds_more, Tensor(a!) ds, Tensor(b!) dweight) -> str",
    "_rms_norm_gated_backward_fallback(Tensor dout, Tensor x, Tensor? z, Tensor? weight, float eps, Tensor? bias, "
    "bool norm_before_gate, str activation, int? group_size, Tensor(a!) dx, Tensor(b!) dz, Tensor(c!) dweight, "
    "Tensor(d!) dbias) -> str",
)

for _schema in (*SCHEMAS, *TRAINABLE_SCHEMAS, *BACKWARD_SCHEMAS):
    library.define(_schema, tags=_TAGS)
for _schema in BACKWARD_FALLBACK_SCHEMAS:
    library.define(_schema)
for _schema in FALLBACK_SCHEMAS:
    library.define(_schema)
    library.define(re.sub(r"\(\w!\)", "", _schema).replace("_fallback", "_refusal"))
