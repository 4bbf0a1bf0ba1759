// serving_ops::fused_add_rms_norm(Tensor(a!) x, Tensor(b!) residual, Tensor? weight, float eps, *, float weight_offset)
#include "../cpu/run.h"
#include "../cuda/run.h"
#include "operators.h"

namespace serving_ops {
namespace {

template <bool (*run)(const NormCall&)>
void call(StableIValue* stack) {
  Arguments arguments(stack, "tto..");
  NormCall norm;
  if (!norm.read_fused_add(arguments) || !run(norm)) arguments.hand_over("serving_ops::_fused_add_rms_norm_fallback");
}

}  // namespace

void fused_add_rms_norm_cpu(StableIValue* stack, uint64_t, uint64_t) { call<cpu::run>(stack); }
void fused_add_rms_norm_cuda(StableIValue* stack, uint64_t, uint64_t) { call<cuda::run>(stack); }

}  // namespace serving_ops
