// serving_ops::fused_add_rms_norm(Tensor(a!) x, Tensor(b!) residual, Tensor? weight, float eps, *, float weight_offset),
// and add_rms_norm(Tensor x, Tensor residual, ...) -> (Tensor out, Tensor total), which is the same on copies.
#include "../cpu/threads.h"
#include "../cuda/run.h"
#include "boxed.h"
#include "operators.h"

namespace serving_ops {
namespace {

using OnCpu = Operator<NormCall, &NormCall::read_fused_add, &cpu::run>;
using OnCuda = Operator<NormCall, &NormCall::read_fused_add, &cuda::run>;

constexpr char kArgumentKinds[] = "tto..";
constexpr char kFallback[] = "serving_ops::_fused_add_rms_norm_fallback";

template <class Device>
void in_place(StableIValue* stack) {
  Arguments arguments(stack, kArgumentKinds);
  Device::call(arguments, kFallback);
}

}  // namespace

void fused_add_rms_norm_cpu(StableIValue* stack, uint64_t, uint64_t) { in_place<OnCpu>(stack); }
void fused_add_rms_norm_cuda(StableIValue* stack, uint64_t, uint64_t) { in_place<OnCuda>(stack); }

void add_rms_norm_cpu(StableIValue* stack, uint64_t, uint64_t) {
  StableIValue sources[] = {stack[0], stack[1]}, in_place[] = {0, 0, stack[2], stack[3], stack[4]};
  Arguments given(sources, "tt");
  Arguments arguments(in_place, "bbo..");
  NewTensor out = NewTensor::copy_of(given.tensor(0)), total = NewTensor::copy_of(given.tensor(1));
  in_place[0] = out.boxed();
  in_place[1] = total.boxed();
  OnCpu::call(arguments, kFallback);
  stack[0] = out.release();
  stack[1] = total.release();
}

void fused_add_rms_norm_refusal(StableIValue* stack, uint64_t, uint64_t) { OnCpu::refusal(stack, kArgumentKinds); }

}  // namespace serving_ops
