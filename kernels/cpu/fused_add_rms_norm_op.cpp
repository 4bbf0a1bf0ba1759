// serving_ops::fused_add_rms_norm(Tensor(a!) x, Tensor(b!) residual, Tensor? weight, float eps, *, float weight_offset)
#include "ops.h"

namespace serving_ops::cpu {
namespace {

// False, with nothing done, where the kernels do not take the call.
bool run(const Arguments& arguments) {
  const TensorView x(arguments.tensor(0)), residual(arguments.tensor(1));
  NormSpec spec{};
  if (!x.is_rows(&spec.dtype) || !residual.is_rows_like(x)) return false;
  spec.size = x.row_size();
  spec.eps = arguments.number(3);
  spec.weight_offset = static_cast<float>(arguments.number(4));
  if (x.overlaps(residual) || !x.is_writable() || !residual.is_writable()) return false;
  if (const AtenTensorHandle weight = arguments.optional_tensor(2); weight != nullptr) {
    const TensorView view(weight);
    if (!view.is_param(spec.size, spec.dtype, &spec.weight) || view.overlaps(x) || view.overlaps(residual)) return false;
  }
  RowSpace<2> space;
  if (!space.build(x.num_dims - 1, x.sizes, {x.strides, residual.strides})) return false;

  const Kernels& kernels = chosen_kernels();
  for_each_rows<2>(space, {&x, &residual}, element_bytes(spec.dtype), kNormWork, [&](const Rows(&rows)[2], int64_t count) {
    kernels.fused_add_rms_norm(spec, rows[0], rows[1], count);
  });
  count(kFusedAddRmsNorm);
  return true;
}

}  // namespace

void fused_add_rms_norm(StableIValue* stack, uint64_t, uint64_t) {
  Arguments arguments(stack, "tto..");
  if (!run(arguments)) arguments.hand_over("serving_ops::_fused_add_rms_norm_fallback");
}

}  // namespace serving_ops::cpu
