// serving_ops::rms_norm_quant(Tensor x, Tensor? weight, float eps, *, str fmt, Tensor? scale, float weight_offset,
// Tensor(a!)? normed) -> (Tensor out, Tensor scales), fused_add_rms_norm_quant with Tensor(a!) residual behind x, and
// .out of both with Tensor out, Tensor scales_out last.
#include "../cpu/threads.h"
#include "new_quantized.h"
#include "operators.h"

namespace serving_ops {
namespace {

using RmsNorm = Operator<NormQuantCall, &NormQuantCall::read_rms_norm, &cuda::run>;
using FusedAdd = Operator<NormQuantCall, &NormQuantCall::read_fused_add, &cuda::run>;
using RmsNormOnCpu = Operator<cpu::Int8Call, &cpu::Int8Call::read_rms_norm, &cpu::run>;
using FusedAddOnCpu = Operator<cpu::Int8Call, &cpu::Int8Call::read_fused_add, &cpu::run>;
using TokenQuant = Operator<NormQuantCall, &NormQuantCall::read_token_quant, &cuda::run>;
using BlockQuant = Operator<NormQuantCall, &NormQuantCall::read_block_quant, &cuda::run>;

constexpr char kRmsNormFallback[] = "serving_ops::_rms_norm_quant_fallback";
constexpr char kFusedAddFallback[] = "serving_ops::_fused_add_rms_norm_quant_fallback";

constexpr char kRmsNormKinds[] = "to.so.ott", kFusedAddKinds[] = "tto.so.ott";

template <class Operator>
void into(StableIValue* stack, const char* kinds, const char* fallback) {
  Arguments arguments(stack, kinds);
  Operator::call(arguments, fallback);
}
template <class Operator>
void rms_norm_into_new(StableIValue* stack) {
  Operator::call_into(stack, "to.so.obb", kRmsNormFallback, new_quantized<3>);
}
template <class Operator>
void fused_add_into_new(StableIValue* stack) {
  Operator::call_into(stack, "tto.so.obb", kFusedAddFallback, new_quantized<4>);
}

}  // namespace

void rms_norm_quant_cpu(StableIValue* stack, uint64_t, uint64_t) { rms_norm_into_new<RmsNormOnCpu>(stack); }
void rms_norm_quant_cuda(StableIValue* stack, uint64_t, uint64_t) { rms_norm_into_new<RmsNorm>(stack); }
void rms_norm_quant_out_cpu(StableIValue* stack, uint64_t, uint64_t) {
  into<RmsNormOnCpu>(stack, kRmsNormKinds, kRmsNormFallback);
}
void rms_norm_quant_out_cuda(StableIValue* stack, uint64_t, uint64_t) {
  into<RmsNorm>(stack, kRmsNormKinds, kRmsNormFallback);
}
void rms_norm_quant_refusal(StableIValue* stack, uint64_t, uint64_t) { RmsNormOnCpu::refusal(stack, kRmsNormKinds); }

void fused_add_rms_norm_quant_cpu(StableIValue* stack, uint64_t, uint64_t) { fused_add_into_new<FusedAddOnCpu>(stack); }
void fused_add_rms_norm_quant_cuda(StableIValue* stack, uint64_t, uint64_t) { fused_add_into_new<FusedAdd>(stack); }
void fused_add_rms_norm_quant_out_cpu(StableIValue* stack, uint64_t, uint64_t) {
  into<FusedAddOnCpu>(stack, kFusedAddKinds, kFusedAddFallback);
}
void fused_add_rms_norm_quant_out_cuda(StableIValue* stack, uint64_t, uint64_t) {
  into<FusedAdd>(stack, kFusedAddKinds, kFusedAddFallback);
}
void fused_add_rms_norm_quant_refusal(StableIValue* stack, uint64_t, uint64_t) {
  FusedAddOnCpu::refusal(stack, kFusedAddKinds);
}

// (Tensor(a!) result, Tensor input, Tensor weight, Tensor(b!) scale, float epsilon, Tensor? scale_ub,
// Tensor(c!)? residual) -> (), and the same with int group_size, bool is_scale_transposed.
void norm_then_token_quant_cuda(StableIValue* stack, uint64_t, uint64_t) {
  into<TokenQuant>(stack, "tttt.oo", "serving_ops::_vllm_rms_norm_dynamic_per_token_quant_fallback");
}
void norm_then_block_quant_cuda(StableIValue* stack, uint64_t, uint64_t) {
  into<BlockQuant>(stack, "tttt.oo..", "serving_ops::_vllm_rms_norm_per_block_quant_fallback");
}

}  // namespace serving_ops
