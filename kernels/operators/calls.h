// A call that the kernels take: its tensors, its numbers and its rows. Reading one is the eligibility test of every
// device; false means that the Python fallback decides, and nothing has been written.
#pragma once

#include "row_space.h"
#include "tensor_view.h"

namespace serving_ops {

enum Op { kFusedAddRmsNorm, kRmsNorm, kRmsNormGated, kNumOps };

struct NormCall {
  Op op;
  NormSpec spec{};
  TensorView x;
  TensorView other;  // fused_add_rms_norm: the residual; rms_norm: where the result goes
  RowSpace<2> space;  // of x and other

  // fused_add_rms_norm(x, residual, weight, eps, weight_offset)
  bool read_fused_add(const Arguments& arguments) {
    op = kFusedAddRmsNorm;
    if (!read_rows(arguments.tensor(0), arguments.tensor(1), arguments.number(3), arguments.number(4))) return false;
    if (x.overlaps(other) || !x.is_writable()) return false;
    return read_weight(arguments.optional_tensor(2)) && build_space();
  }

  // rms_norm(x, weight, eps, weight_offset, out)
  bool read_rms_norm(const Arguments& arguments) {
    op = kRmsNorm;
    if (!read_rows(arguments.tensor(0), arguments.tensor(4), arguments.number(2), arguments.number(3))) return false;
    if (other.overlaps(x) && !other.is_same_view(x)) return false;
    return read_weight(arguments.optional_tensor(1)) && build_space();
  }

 private:
  bool read_rows(AtenTensorHandle rows, AtenTensorHandle others, double eps, double weight_offset) {
    x = TensorView(rows);
    other = TensorView(others);
    if (!x.is_rows(&spec.dtype) || !other.is_rows_like(x)) return false;
    spec.size = x.row_size();
    spec.eps = eps;
    spec.weight_offset = static_cast<float>(weight_offset);
    return other.is_writable();
  }
  bool read_weight(AtenTensorHandle tensor) {
    if (tensor == nullptr) return true;
    const TensorView weight(tensor);
    return weight.is_param_of(x, spec.dtype, &spec.weight) && !weight.overlaps(other) &&
           (op == kRmsNorm || !weight.overlaps(x));
  }
  bool build_space() { return space.build(x.num_dims - 1, x.sizes, {x.strides, other.strides}); }
};

struct GatedCall {
  GatedNormSpec spec{};
  TensorView x, z, out;  // z is x where there is no gate
  bool has_gate;
  RowSpace<3> space;  // of x, z and out

  // rms_norm_gated(x, z, weight, eps, bias, norm_before_gate, activation, group_size, out)
  bool read(const Arguments& arguments) {
    x = TensorView(arguments.tensor(0));
    out = TensorView(arguments.tensor(8));
    if (!x.is_rows(&spec.dtype) || !out.is_rows_like(x)) return false;
    spec.size = x.row_size();
    spec.eps = arguments.number(3);
    spec.norm_before_gate = arguments.boolean(5);
    spec.group_size = arguments.optional_int(7, spec.size);
    if (spec.group_size <= 0 || spec.size % spec.group_size != 0) return false;
    if (!out.is_writable() || (out.overlaps(x) && !out.is_same_view(x))) return false;
    return read_activation(arguments.text(6)) && read_gate(arguments.optional_tensor(1)) &&
           read_param(arguments.optional_tensor(2), &spec.weight) &&
           read_param(arguments.optional_tensor(4), &spec.bias) &&
           space.build(x.num_dims - 1, x.sizes, {x.strides, z.strides, out.strides});
  }

 private:
  bool read_activation(std::string_view activation) {
    spec.silu = activation == "silu" || activation == "swish";
    return spec.silu || activation == "sigmoid";
  }
  bool read_gate(AtenTensorHandle tensor) {
    has_gate = tensor != nullptr;
    z = has_gate ? TensorView(tensor) : x;
    return !has_gate || (z.is_rows_like(x) && (!z.overlaps(out) || out.is_same_view(z)));
  }
  bool read_param(AtenTensorHandle tensor, Param* param) {
    if (tensor == nullptr) return true;
    const TensorView view(tensor);
    return view.is_param_of(x, spec.dtype, param) && !view.overlaps(out);
  }
};

}  // namespace serving_ops
