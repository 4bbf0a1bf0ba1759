// serving_ops::rms_norm_gated(Tensor x, Tensor? z, Tensor? weight, float eps, *, Tensor? bias, bool norm_before_gate,
// str activation, int? group_size) -> Tensor, and .out with Tensor(a!) out last.
#include "ops.h"

namespace serving_ops::cpu {
namespace {

constexpr char kFallback[] = "serving_ops::_rms_norm_gated_fallback";

// Whether the parameter is absent or one that the kernels take.
bool take_param(AtenTensorHandle tensor, const GatedNormSpec& spec, const TensorView& out, Param* param) {
  if (tensor == nullptr) return true;
  const TensorView view(tensor);
  return view.is_param(spec.size, spec.dtype, param) && !view.overlaps(out);
}

void launch(const GatedNormSpec& spec, const RowSpace<2>& space, const TensorView& x, const TensorView& out) {
  const Kernels& kernels = chosen_kernels();
  for_each_rows<2>(space, {&x, &out}, element_bytes(spec.dtype), kGateWork, [&](const Rows(&rows)[2], int64_t count) {
    kernels.rms_norm_gated(spec, rows[0], Rows{}, rows[1], count);
  });
}

void launch(const GatedNormSpec& spec, const RowSpace<3>& space, const TensorView& x, const TensorView& z,
            const TensorView& out) {
  const Kernels& kernels = chosen_kernels();
  for_each_rows<3>(space, {&x, &z, &out}, element_bytes(spec.dtype), kGateWork, [&](const Rows(&rows)[3], int64_t count) {
    kernels.rms_norm_gated(spec, rows[0], rows[1], rows[2], count);
  });
}

// False, with nothing done, where the kernels do not take the call.
bool run(const Arguments& arguments) {
  const TensorView x(arguments.tensor(0)), out(arguments.tensor(8));
  GatedNormSpec spec{};
  if (!x.is_rows(&spec.dtype) || !out.is_rows_like(x)) return false;
  spec.size = x.row_size();
  spec.eps = arguments.number(3);
  spec.norm_before_gate = arguments.boolean(5);
  const std::string_view activation = arguments.text(6);
  spec.silu = activation == "silu" || activation == "swish";
  if (!spec.silu && activation != "sigmoid") return false;
  spec.group_size = arguments.optional_int(7, spec.size);
  if (spec.group_size <= 0 || spec.size % spec.group_size != 0) return false;
  if (!out.is_writable() || (out.overlaps(x) && !out.is_same_view(x))) return false;
  if (!take_param(arguments.optional_tensor(2), spec, out, &spec.weight) ||
      !take_param(arguments.optional_tensor(4), spec, out, &spec.bias))
    return false;

  if (const AtenTensorHandle gate = arguments.optional_tensor(1); gate != nullptr) {
    const TensorView z(gate);
    RowSpace<3> space;
    if (!z.is_rows_like(x) || (z.overlaps(out) && !out.is_same_view(z))) return false;
    if (!space.build(x.num_dims - 1, x.sizes, {x.strides, z.strides, out.strides})) return false;
    launch(spec, space, x, z, out);
  } else {
    RowSpace<2> space;
    if (!space.build(x.num_dims - 1, x.sizes, {x.strides, out.strides})) return false;
    launch(spec, space, x, out);
  }
  count(kRmsNormGated);
  return true;
}

}  // namespace

void rms_norm_gated(StableIValue* stack, uint64_t, uint64_t) {
  NewTensor out = NewTensor::empty_like(unboxed<AtenTensorHandle>(stack[0]));
  StableIValue with_out[] = {stack[0], stack[1], stack[2], stack[3], stack[4], stack[5], stack[6], stack[7], out.boxed()};
  {
    Arguments arguments(with_out, "too.o.sib");
    if (!run(arguments)) arguments.hand_over(kFallback);
  }
  stack[0] = out.boxed();
  out.release();
}

void rms_norm_gated_out(StableIValue* stack, uint64_t, uint64_t) {
  Arguments arguments(stack, "too.o.sit");
  if (!run(arguments)) arguments.hand_over(kFallback);
}

}  // namespace serving_ops::cpu
