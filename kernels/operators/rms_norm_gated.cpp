// serving_ops::rms_norm_gated(Tensor x, Tensor? z, Tensor? weight, float eps, *, Tensor? bias, bool norm_before_gate,
// str activation, int? group_size) -> Tensor, and .out with Tensor(a!) out last.
#include "../cpu/run.h"
#include "../cuda/run.h"
#include "operators.h"

namespace serving_ops {
namespace {

template <bool (*run)(const GatedCall&)>
void call(Arguments& arguments) {
  GatedCall gated;
  if (!gated.read(arguments) || !run(gated)) arguments.hand_over("serving_ops::_rms_norm_gated_fallback");
}

template <bool (*run)(const GatedCall&)>
void call_out(StableIValue* stack) {
  Arguments arguments(stack, "too.o.sit");
  call<run>(arguments);
}

template <bool (*run)(const GatedCall&)>
void call_new(StableIValue* stack) {
  StableIValue with_out[] = {stack[0], stack[1], stack[2], stack[3], stack[4], stack[5], stack[6], stack[7], 0};
  Arguments arguments(with_out, "too.o.sib");
  NewTensor out = NewTensor::empty_like(arguments.tensor(0));
  with_out[8] = out.boxed();
  call<run>(arguments);
  stack[0] = out.release();
}

}  // namespace

void rms_norm_gated_cpu(StableIValue* stack, uint64_t, uint64_t) { call_new<cpu::run>(stack); }
void rms_norm_gated_cuda(StableIValue* stack, uint64_t, uint64_t) { call_new<cuda::run>(stack); }
void rms_norm_gated_out_cpu(StableIValue* stack, uint64_t, uint64_t) { call_out<cpu::run>(stack); }
void rms_norm_gated_out_cuda(StableIValue* stack, uint64_t, uint64_t) { call_out<cuda::run>(stack); }

}  // namespace serving_ops
