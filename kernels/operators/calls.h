// A call that the kernels take: its tensors, its numbers and its rows. Reading one is the eligibility test of every
// device. What it refuses goes to the Python fallback, and nothing has been written.
#pragma once

#include <cmath>
#include <limits>

#include "row_space.h"
#include "tensor_view.h"

namespace serving_ops {

#define LIMIT(symbol, name, value) constexpr int64_t symbol = value;
#include "../contract.def"

enum Op {
#define OP(symbol, name) symbol,
#include "../contract.def"
  kNumOps
};

// The tests of memory are cheap, and so may refuse a layout whose elements lie apart.
constexpr char kMayBeWritten[] = " may share memory with a tensor that is written";
constexpr char kMayOverlapItself[] = " is written, and two of its elements may share memory";
constexpr double kMaxFloat = std::numeric_limits<float>::max();
constexpr Refusal kTooManyDims{"", "leading dimensions that merge into more than 6"};
static_assert(RowSpace<1>::kMaxDims == 6);

// eps is at least 0, and both are finite in fp32. NaN is neither.
inline Refusal read_eps(double given, double* eps) {
  *eps = given;
  return given >= 0 && given <= kMaxFloat ? Refusal{} : Refusal{"eps", " is negative or not finite"};
}
inline Refusal read_numbers(double eps, double weight_offset, NormSpec* spec) {
  spec->weight_offset = static_cast<float>(weight_offset);
  if (!(std::abs(weight_offset) <= kMaxFloat)) return {"weight_offset", " is not finite"};
  return read_eps(eps, &spec->eps);
}

// Like x, or fp32 beside half precision.
inline Refusal read_residual(const TensorView& residual, const TensorView& x, NormSpec* spec) {
  static const int32_t float32 = aoti_torch_dtype_float32();
  spec->fp32_residual = residual.dtype != x.dtype;
  return residual.read_rows_of("residual", x, spec->fp32_residual ? float32 : x.dtype);
}

struct NormCall {
  Op op;
  NormSpec spec{};
  TensorView x;
  TensorView other;  // fused_add_rms_norm: the residual; rms_norm: where the result goes
  RowSpace<2> space;  // of x and other

  // fused_add_rms_norm(x, residual, weight, eps, weight_offset)
  Refusal read_fused_add(const Arguments& arguments) {
    op = kFusedAddRmsNorm;
    if (const Refusal refusal = read_numbers(arguments.number(3), arguments.number(4), &spec)) return refusal;
    if (const Refusal refusal = read_x(arguments.tensor(0), arguments.tensor(1))) return refusal;
    if (const Refusal refusal = read_residual(other, x, &spec)) return refusal;
    if (!other.is_writable()) return {"residual", kMayOverlapItself};
    if (!x.is_writable()) return {"x", kMayOverlapItself};
    if (x.overlaps(other)) return {"residual", kMayBeWritten};
    return read_weight(arguments.optional_tensor(2));
  }

  // rms_norm(x, weight, eps, weight_offset, out)
  Refusal read_rms_norm(const Arguments& arguments) {
    op = kRmsNorm;
    if (const Refusal refusal = read_numbers(arguments.number(2), arguments.number(3), &spec)) return refusal;
    if (const Refusal refusal = read_x(arguments.tensor(0), arguments.tensor(4))) return refusal;
    if (const Refusal refusal = other.read_rows_like("out", x)) return refusal;
    if (!other.is_writable()) return {"out", kMayOverlapItself};
    if (other.overlaps(x) && !other.is_same_view(x)) return {"x", kMayBeWritten};
    return read_weight(arguments.optional_tensor(1));
  }

 private:
  Refusal read_x(AtenTensorHandle rows, AtenTensorHandle others) {
    x = TensorView(rows);
    other = TensorView(others);
    if (const Refusal refusal = x.read_rows("x", &spec.dtype)) return refusal;
    spec.size = x.row_size();
    return {};
  }
  Refusal read_weight(AtenTensorHandle tensor) {
    if (tensor != nullptr) {
      const TensorView weight(tensor);
      if (const Refusal refusal = weight.read_param("weight", x, spec.dtype, &spec.weight)) return refusal;
      if (weight.overlaps(other) || (op == kFusedAddRmsNorm && weight.overlaps(x))) return {"weight", kMayBeWritten};
    }
    return space.build(x.num_dims - 1, x.sizes, {x.strides, other.strides}) ? Refusal{} : kTooManyDims;
  }
};

struct GatedCall {
  GatedNormSpec spec{};
  TensorView x, z, out;  // z is x where there is no gate
  bool has_gate;
  RowSpace<3> space;  // of x, z and out

  // rms_norm_gated(x, z, weight, eps, bias, norm_before_gate, activation, group_size, out)
  Refusal read(const Arguments& arguments) {
    x = TensorView(arguments.tensor(0));
    out = TensorView(arguments.tensor(8));
    if (const Refusal refusal = x.read_rows("x", &spec.dtype)) return refusal;
    if (const Refusal refusal = out.read_rows_like("out", x)) return refusal;
    if (const Refusal refusal = read_options(arguments, 3, 5, x.row_size(), &spec)) return refusal;
    if (!out.is_writable()) return {"out", kMayOverlapItself};
    if (out.overlaps(x) && !out.is_same_view(x)) return {"x", kMayBeWritten};
    if (const Refusal refusal = read_gate(arguments.optional_tensor(1))) return refusal;
    if (const Refusal refusal = read_param("weight", arguments.optional_tensor(2), &spec.weight)) return refusal;
    if (const Refusal refusal = read_param("bias", arguments.optional_tensor(4), &spec.bias)) return refusal;
    return space.build(x.num_dims - 1, x.sizes, {x.strides, z.strides, out.strides}) ? Refusal{} : kTooManyDims;
  }

  // eps, and norm_before_gate, activation and group_size from argument `first` on.
  static Refusal read_options(const Arguments& arguments, int eps, int first, int64_t size, GatedNormSpec* spec) {
    spec->size = size;
    if (const Refusal refusal = read_eps(arguments.number(eps), &spec->eps)) return refusal;
    spec->norm_before_gate = arguments.boolean(first);
    const std::string_view activation = arguments.text(first + 1);
    spec->silu = activation == "silu" || activation == "swish";
    if (!spec->silu && activation != "sigmoid") return {"activation", " is not known"};
    spec->group_size = arguments.optional_int(first + 2, size);
    if (spec->group_size <= 0 || size % spec->group_size != 0) return {"group_size", " does not divide N"};
    return {};
  }

 private:
  Refusal read_gate(AtenTensorHandle tensor) {
    has_gate = tensor != nullptr;
    z = has_gate ? TensorView(tensor) : x;
    if (!has_gate) return {};
    if (const Refusal refusal = z.read_rows_like("z", x)) return refusal;
    return z.overlaps(out) && !out.is_same_view(z) ? Refusal{"z", kMayBeWritten} : Refusal{};
  }
  Refusal read_param(const char* name, AtenTensorHandle tensor, Param* param) {
    if (tensor == nullptr) return {};
    const TensorView view(tensor);
    if (const Refusal refusal = view.read_param(name, x, spec.dtype, param)) return refusal;
    return view.overlaps(out) ? Refusal{name, kMayBeWritten} : Refusal{};
  }
};

}  // namespace serving_ops
