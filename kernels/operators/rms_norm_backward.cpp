// serving_ops::rms_norm_backward(Tensor dout, Tensor s, Tensor? weight, float eps, *, float weight_offset,
// Tensor? ds_more) -> (Tensor ds, Tensor dweight)
#include "../cpu/backward/run_backward.h"
#include "boxed.h"
#include "operators.h"

namespace serving_ops {

void rms_norm_backward_cpu(StableIValue* stack, uint64_t, uint64_t) {
  using OnCpu = Operator<NormBackwardCall, &NormBackwardCall::read, &cpu::run>;
  constexpr int kS = 1, kWeight = 2;
  OnCpu::call_new<kS, kWeight>(stack, "tto..obb", "serving_ops::_rms_norm_backward_fallback");
}

}  // namespace serving_ops
