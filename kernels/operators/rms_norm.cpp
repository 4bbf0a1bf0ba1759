// serving_ops::rms_norm(Tensor x, Tensor? weight, float eps, *, float weight_offset) -> Tensor, and .out with
// Tensor(a!) out last.
#include "../cpu/threads.h"
#include "../cuda/run.h"
#include "boxed.h"
#include "operators.h"

namespace serving_ops {
namespace {

using OnCpu = Operator<NormCall, &NormCall::read_rms_norm, &cpu::run>;
using OnCuda = Operator<NormCall, &NormCall::read_rms_norm, &cuda::run>;

constexpr char kArgumentKinds[] = "to..t";
constexpr char kFallback[] = "serving_ops::_rms_norm_fallback";
constexpr int kX = 0;

template <class Device>
void into(StableIValue* stack) {
  Arguments arguments(stack, kArgumentKinds);
  Device::call(arguments, kFallback);
}

template <class Device>
void into_new(StableIValue* stack) {
  Device::template call_new<kX>(stack, "to..b", kFallback);
}

}  // namespace

void rms_norm_cpu(StableIValue* stack, uint64_t, uint64_t) { into_new<OnCpu>(stack); }
void rms_norm_cuda(StableIValue* stack, uint64_t, uint64_t) { into_new<OnCuda>(stack); }
void rms_norm_out_cpu(StableIValue* stack, uint64_t, uint64_t) { into<OnCpu>(stack); }
void rms_norm_out_cuda(StableIValue* stack, uint64_t, uint64_t) { into<OnCuda>(stack); }
void rms_norm_refusal(StableIValue* stack, uint64_t, uint64_t) { OnCpu::refusal(stack, kArgumentKinds); }

}  // namespace serving_ops
