// serving_ops::rms_norm(Tensor x, Tensor? weight, float eps, *, float weight_offset) -> Tensor, and .out with
// Tensor(a!) out last.
#include "../cpu/run.h"
#include "../cuda/run.h"
#include "operators.h"

namespace serving_ops {
namespace {

template <bool (*run)(const NormCall&)>
void call_out(StableIValue* stack, const char* kinds = "to..t") {
  Arguments arguments(stack, kinds);
  NormCall norm;
  if (!norm.read_rms_norm(arguments) || !run(norm)) arguments.hand_over("serving_ops::_rms_norm_fallback");
}

template <bool (*run)(const NormCall&)>
void call(StableIValue* stack) {
  NewTensor out = NewTensor::empty_like(unboxed<AtenTensorHandle>(stack[0]));
  StableIValue with_out[] = {stack[0], stack[1], stack[2], stack[3], out.boxed()};
  call_out<run>(with_out, "to..b");
  stack[0] = out.boxed();
  out.release();
}

}  // namespace

void rms_norm_cpu(StableIValue* stack, uint64_t, uint64_t) { call<cpu::run>(stack); }
void rms_norm_cuda(StableIValue* stack, uint64_t, uint64_t) { call<cuda::run>(stack); }
void rms_norm_out_cpu(StableIValue* stack, uint64_t, uint64_t) { call_out<cpu::run>(stack); }
void rms_norm_out_cuda(StableIValue* stack, uint64_t, uint64_t) { call_out<cuda::run>(stack); }

}  // namespace serving_ops
