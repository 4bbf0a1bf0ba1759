// serving_ops::rms_norm_gated_quant(Tensor x, Tensor? z, Tensor? weight, float eps, *, str fmt, Tensor? scale,
// Tensor? bias, bool norm_before_gate, str activation, int? norm_group_size, Tensor(a!)? normed)
// -> (Tensor out, Tensor scales), and .out with Tensor out, Tensor scales_out last.
#include "new_quantized.h"
#include "operators.h"

namespace serving_ops {
namespace {

using OnCuda = Operator<GatedQuantCall, &GatedQuantCall::read, &cuda::run>;

constexpr char kFallback[] = "serving_ops::_rms_norm_gated_quant_fallback";

}  // namespace

void rms_norm_gated_quant_cuda(StableIValue* stack, uint64_t, uint64_t) {
  OnCuda::call_into(stack, "too.soo.siobb", kFallback, new_quantized<4>);
}

void rms_norm_gated_quant_out_cuda(StableIValue* stack, uint64_t, uint64_t) {
  Arguments arguments(stack, "too.soo.siott");
  OnCuda::call(arguments, kFallback);
}

}  // namespace serving_ops
