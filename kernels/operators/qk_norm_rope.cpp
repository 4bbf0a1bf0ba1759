// serving_ops::qk_norm_rope: serving_ops/ops/qk_norm_rope.py has its arguments.
#include "../cpu/run_rope.h"
#include "boxed.h"
#include "operators.h"

namespace serving_ops {
namespace {

using OnCpu = Operator<RopeCall, &RopeCall::read, &cpu::run>;

}  // namespace

void qk_norm_rope_cpu(StableIValue* stack, uint64_t, uint64_t) {
  Arguments arguments(stack, RopeCall::kKinds);
  OnCpu::call(arguments, "serving_ops::_qk_norm_rope_fallback");
}

void qk_norm_rope_refusal(StableIValue* stack, uint64_t, uint64_t) { OnCpu::refusal(stack, RopeCall::kKinds); }

}  // namespace serving_ops
