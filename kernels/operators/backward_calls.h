// A backward call that the kernels take: as calls.h. The results are new tensors of this library's making, so only what
// is read can be refused; what is read may overlap.
#pragma once

#include "calls.h"

namespace serving_ops {

struct NormBackwardCall {
  NormSpec spec{};
  TensorView dout, s, more, ds;  // more is s where nothing is added
  bool has_more;
  TensorView dweight;  // of spec.weight's dtype, where there is a weight
  RowSpace<4> space;   // of dout, s, more and ds

  // rms_norm_backward(dout, s, weight, eps, weight_offset, ds_more, ds, dweight)
  Refusal read(const Arguments& arguments) {
    dout = TensorView(arguments.tensor(0));
    s = TensorView(arguments.tensor(1));
    if (const Refusal refusal = read_numbers(arguments.number(3), arguments.number(4), &spec)) return refusal;
    has_more = arguments.optional_tensor(5) != nullptr;
    more = has_more ? TensorView(arguments.optional_tensor(5)) : s;
    ds = TensorView(arguments.tensor(6));
    dweight = TensorView(arguments.tensor(7));
    if (const Refusal refusal = s.read_rows("s", &spec.dtype)) return refusal;
    if (const Refusal refusal = dout.read_rows_like("dout", s)) return refusal;
    if (const Refusal refusal = more.read_rows_like("ds_more", s)) return refusal;
    spec.size = s.row_size();
    if (const Refusal refusal = read_param("weight", arguments.optional_tensor(2), s, spec.dtype, &spec.weight))
      return refusal;
    const bool few = space.build(s.num_dims - 1, s.sizes, {dout.strides, s.strides, more.strides, ds.strides});
    return few ? Refusal{} : kTooManyDims;
  }

  static Refusal read_param(const char* name, AtenTensorHandle tensor, const TensorView& x, Dtype dtype, Param* param) {
    return tensor == nullptr ? Refusal{} : TensorView(tensor).read_param(name, x, dtype, param);
  }
};

struct GatedBackwardCall {
  GatedNormSpec spec{};
  TensorView dout, x, z, dx, dz;  // z is x where there is no gate, and dz is dx
  bool has_gate;
  TensorView dweight, dbias;  // of the dtypes of spec.weight and spec.bias, where those are
  RowSpace<5> space;          // of dout, x, z, dx and dz

  // rms_norm_gated_backward(dout, x, z, weight, eps, bias, norm_before_gate, activation, group_size, dx, dz, dweight,
  // dbias)
  Refusal read(const Arguments& arguments) {
    dout = TensorView(arguments.tensor(0));
    x = TensorView(arguments.tensor(1));
    has_gate = arguments.optional_tensor(2) != nullptr;
    z = has_gate ? TensorView(arguments.optional_tensor(2)) : x;
    dx = TensorView(arguments.tensor(9));
    dz = has_gate ? TensorView(arguments.tensor(10)) : dx;
    dweight = TensorView(arguments.tensor(11));
    dbias = TensorView(arguments.tensor(12));
    if (const Refusal refusal = x.read_rows("x", &spec.dtype)) return refusal;
    if (const Refusal refusal = dout.read_rows_like("dout", x)) return refusal;
    if (const Refusal refusal = z.read_rows_like("z", x)) return refusal;
    if (const Refusal refusal = GatedCall::read_options(arguments, 4, 6, x.row_size(), &spec)) return refusal;
    const auto read_param = NormBackwardCall::read_param;
    if (const Refusal refusal = read_param("weight", arguments.optional_tensor(3), x, spec.dtype, &spec.weight))
      return refusal;
    if (const Refusal refusal = read_param("bias", arguments.optional_tensor(5), x, spec.dtype, &spec.bias))
      return refusal;
    const bool few =
        space.build(x.num_dims - 1, x.sizes, {dout.strides, x.strides, z.strides, dx.strides, dz.strides});
    return few ? Refusal{} : kTooManyDims;
  }
};

}  // namespace serving_ops
