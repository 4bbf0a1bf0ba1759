// serving_ops::rms_norm_gated(Tensor x, Tensor? z, Tensor? weight, float eps, *, Tensor? bias, bool norm_before_gate,
// str activation, int? group_size) -> Tensor, and .out with Tensor(a!) out last.
#include "../cpu/run.h"
#include "../cuda/run.h"
#include "operators.h"

namespace serving_ops {
namespace {

template <bool (*run)(const GatedCall&)>
void call_out(StableIValue* stack, const char* kinds = "too.o.sit") {
  Arguments arguments(stack, kinds);
  GatedCall gated;
  if (!gated.read(arguments) || !run(gated)) arguments.hand_over("serving_ops::_rms_norm_gated_fallback");
}

template <bool (*run)(const GatedCall&)>
void call(StableIValue* stack) {
  NewTensor out = NewTensor::empty_like(unboxed<AtenTensorHandle>(stack[0]));
  StableIValue with_out[] = {stack[0], stack[1], stack[2], stack[3], stack[4],
                             stack[5], stack[6], stack[7], out.boxed()};
  call_out<run>(with_out, "too.o.sib");
  stack[0] = out.boxed();
  out.release();
}

}  // namespace

void rms_norm_gated_cpu(StableIValue* stack, uint64_t, uint64_t) { call<cpu::run>(stack); }
void rms_norm_gated_cuda(StableIValue* stack, uint64_t, uint64_t) { call<cuda::run>(stack); }
void rms_norm_gated_out_cpu(StableIValue* stack, uint64_t, uint64_t) { call_out<cpu::run>(stack); }
void rms_norm_gated_out_cuda(StableIValue* stack, uint64_t, uint64_t) { call_out<cuda::run>(stack); }

}  // namespace serving_ops
