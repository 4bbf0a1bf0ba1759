// serving_ops::rms_norm(Tensor x, Tensor? weight, float eps, *, float weight_offset) -> Tensor, and .out with
// Tensor(a!) out last.
#include "ops.h"

namespace serving_ops::cpu {
namespace {

constexpr char kFallback[] = "serving_ops::_rms_norm_fallback";

// False, with nothing done, where the kernels do not take the call.
bool run(const Arguments& arguments) {
  const TensorView x(arguments.tensor(0)), out(arguments.tensor(4));
  NormSpec spec{};
  if (!x.is_rows(&spec.dtype) || !out.is_rows_like(x)) return false;
  spec.size = x.row_size();
  spec.eps = arguments.number(2);
  spec.weight_offset = static_cast<float>(arguments.number(3));
  if (!out.is_writable() || (out.overlaps(x) && !out.is_same_view(x))) return false;
  if (const AtenTensorHandle weight = arguments.optional_tensor(1); weight != nullptr) {
    const TensorView view(weight);
    if (!view.is_param(spec.size, spec.dtype, &spec.weight) || view.overlaps(out)) return false;
  }
  RowSpace<2> space;
  if (!space.build(x.num_dims - 1, x.sizes, {x.strides, out.strides})) return false;

  const Kernels& kernels = chosen_kernels();
  for_each_rows<2>(space, {&x, &out}, element_bytes(spec.dtype), kNormWork, [&](const Rows(&rows)[2], int64_t count) {
    kernels.rms_norm(spec, rows[0], rows[1], count);
  });
  count(kRmsNorm);
  return true;
}

}  // namespace

void rms_norm(StableIValue* stack, uint64_t, uint64_t) {
  NewTensor out = NewTensor::empty_like(unboxed<AtenTensorHandle>(stack[0]));
  StableIValue with_out[] = {stack[0], stack[1], stack[2], stack[3], out.boxed()};
  {
    Arguments arguments(with_out, "to..b");
    if (!run(arguments)) arguments.hand_over(kFallback);
  }
  stack[0] = out.boxed();
  out.release();
}

void rms_norm_out(StableIValue* stack, uint64_t, uint64_t) {
  Arguments arguments(stack, "to..t");
  if (!run(arguments)) arguments.hand_over(kFallback);
}

}  // namespace serving_ops::cpu
