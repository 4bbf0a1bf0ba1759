// serving_ops::rms_norm_gated(Tensor x, Tensor? z, Tensor? weight, float eps, *, Tensor? bias, bool norm_before_gate,
// str activation, int? group_size) -> Tensor, and .out with Tensor(a!) out last.
#include "../cpu/threads.h"
#include "../cuda/run.h"
#include "boxed.h"
#include "operators.h"

namespace serving_ops {
namespace {

using OnCpu = Operator<GatedCall, &GatedCall::read, &cpu::run>;
using OnCuda = Operator<GatedCall, &GatedCall::read, &cuda::run>;

constexpr char kArgumentKinds[] = "too.o.sit";
constexpr char kFallback[] = "serving_ops::_rms_norm_gated_fallback";
constexpr int kX = 0;

template <class Device>
void into(StableIValue* stack) {
  Arguments arguments(stack, kArgumentKinds);
  Device::call(arguments, kFallback);
}

template <class Device>
void into_new(StableIValue* stack) {
  Device::template call_new<kX>(stack, "too.o.sib", kFallback);
}

}  // namespace

void rms_norm_gated_cpu(StableIValue* stack, uint64_t, uint64_t) { into_new<OnCpu>(stack); }
void rms_norm_gated_cuda(StableIValue* stack, uint64_t, uint64_t) { into_new<OnCuda>(stack); }
void rms_norm_gated_out_cpu(StableIValue* stack, uint64_t, uint64_t) { into<OnCpu>(stack); }
void rms_norm_gated_out_cuda(StableIValue* stack, uint64_t, uint64_t) { into<OnCuda>(stack); }
void rms_norm_gated_refusal(StableIValue* stack, uint64_t, uint64_t) { OnCpu::refusal(stack, kArgumentKinds); }

}  // namespace serving_ops
