"""The library that the operators are defined in, and the schemas of those that autograd calls.

`serving_ops.ops.registry` defines all others.
"""

from __future__ import annotations

import torch

library = torch.library.Library("serving_ops", "DEF")

TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)

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
BACKWARD_FALLBACK_SCHEMAS = (
    "_rms_norm_backward_fallback(Tensor dout, Tensor s, Tensor? weight, float eps, float weight_offset, "
    "Tensor? ds_more, Tensor(a!) ds, Tensor(b!) dweight) -> str",
    "_rms_norm_gated_backward_fallback(Tensor dout, Tensor x, Tensor? z, Tensor? weight, float eps, Tensor? bias, "
    "bool norm_before_gate, str activation, int? group_size, Tensor(a!) dx, Tensor(b!) dz, Tensor(c!) dweight, "
    "Tensor(d!) dbias) -> str",
)

for _schema in (*TRAINABLE_SCHEMAS, *BACKWARD_SCHEMAS):
    library.define(_schema, tags=TAGS)
for _schema in BACKWARD_FALLBACK_SCHEMAS:
    library.define(_schema)
