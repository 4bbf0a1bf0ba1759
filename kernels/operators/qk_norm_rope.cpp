// serving_ops::qk_norm_rope, whose arguments serving_ops/ops/qk_norm_rope.py has; and the same with few arguments for
// vLLM's layers, which integrations/vllm/qk_norm_rope_layer.py defines.
#include "../cpu/run_rope.h"
#include "../cuda/run.h"
#include "boxed.h"
#include "operators.h"

namespace serving_ops {
namespace {

using OnCpu = Operator<RopeCall, &RopeCall::read, &cpu::run>;
using OnCuda = Operator<RopeCall, &RopeCall::read, &cuda::run>;
using ShortOnCpu = Operator<RopeCall, &RopeCall::read_short, &cpu::run>;
using ShortOnCuda = Operator<RopeCall, &RopeCall::read_short, &cuda::run>;

template <class Device>
void in_place(StableIValue* stack) {
  Arguments arguments(stack, RopeCall::kKinds);
  Device::call(arguments, "serving_ops::_qk_norm_rope_fallback");
}

template <class Device>
void in_place_short(StableIValue* stack) {
  Arguments arguments(stack, RopeCall::kShortKinds);
  Device::call(arguments, "serving_ops::_vllm_qk_norm_rope_fallback");
}

}  // namespace

void qk_norm_rope_cpu(StableIValue* stack, uint64_t, uint64_t) { in_place<OnCpu>(stack); }
void qk_norm_rope_cuda(StableIValue* stack, uint64_t, uint64_t) { in_place<OnCuda>(stack); }
void short_qk_norm_rope_cpu(StableIValue* stack, uint64_t, uint64_t) { in_place_short<ShortOnCpu>(stack); }
void short_qk_norm_rope_cuda(StableIValue* stack, uint64_t, uint64_t) { in_place_short<ShortOnCuda>(stack); }
void qk_norm_rope_refusal(StableIValue* stack, uint64_t, uint64_t) { OnCpu::refusal(stack, RopeCall::kKinds); }

}  // namespace serving_ops
