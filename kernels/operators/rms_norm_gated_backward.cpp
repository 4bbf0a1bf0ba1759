// serving_ops::rms_norm_gated_backward(Tensor dout, Tensor x, Tensor? z, Tensor? weight, float eps, *, Tensor? bias,
// bool norm_before_gate, str activation, int? group_size) -> (Tensor dx, Tensor dz, Tensor dweight, Tensor dbias)
#include "../cpu/backward/run_backward.h"
#include "boxed.h"
#include "operators.h"

namespace serving_ops {

void rms_norm_gated_backward_cpu(StableIValue* stack, uint64_t, uint64_t) {
  using OnCpu = Operator<GatedBackwardCall, &GatedBackwardCall::read, &cpu::run>;
  constexpr int kX = 1, kZ = 2, kWeight = 3, kBias = 5;
  OnCpu::call_new<kX, kZ, kWeight, kBias>(stack, "ttoo.o.sibbbb", "serving_ops::_rms_norm_gated_backward_fallback");
}

}  // namespace serving_ops
