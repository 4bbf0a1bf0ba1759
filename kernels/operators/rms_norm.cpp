// serving_ops::rms_norm(Tensor x, Tensor? weight, float eps, *, float weight_offset) -> Tensor, and .out with
// Tensor(a!) out last.
#include "../cpu/run.h"
#include "../cuda/run.h"
#include "operators.h"

namespace serving_ops {
namespace {

template <bool (*run)(const NormCall&)>
void call(Arguments& arguments) {
  NormCall norm;
  if (!norm.read_rms_norm(arguments) || !run(norm)) arguments.hand_over("serving_ops::_rms_norm_fallback");
}

template <bool (*run)(const NormCall&)>
void call_out(StableIValue* stack) {
  Arguments arguments(stack, "to..t");
  call<run>(arguments);
}

template <bool (*run)(const NormCall&)>
void call_new(StableIValue* stack) {
  StableIValue with_out[] = {stack[0], stack[1], stack[2], stack[3], 0};
  Arguments arguments(with_out, "to..b");
  NewTensor out = NewTensor::empty_like(arguments.tensor(0));
  with_out[4] = out.boxed();
  call<run>(arguments);
  stack[0] = out.release();
}

}  // namespace

void rms_norm_cpu(StableIValue* stack, uint64_t, uint64_t) { call_new<cpu::run>(stack); }
void rms_norm_cuda(StableIValue* stack, uint64_t, uint64_t) { call_new<cuda::run>(stack); }
void rms_norm_out_cpu(StableIValue* stack, uint64_t, uint64_t) { call_out<cpu::run>(stack); }
void rms_norm_out_cuda(StableIValue* stack, uint64_t, uint64_t) { call_out<cuda::run>(stack); }

}  // namespace serving_ops
