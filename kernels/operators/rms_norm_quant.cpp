// serving_ops::rms_norm_quant(Tensor x, Tensor? weight, float eps, *, str fmt, Tensor? scale, float weight_offset,
// Tensor(a!)? normed) -> (Tensor out, Tensor scales), fused_add_rms_norm_quant with Tensor(a!) residual behind x, and
// .out of both with Tensor out, Tensor scales_out last.
#include "new_quantized.h"
#include "operators.h"

namespace serving_ops {
namespace {

using RmsNorm = Operator<NormQuantCall, &NormQuantCall::read_rms_norm, &cuda::run>;
using FusedAdd = Operator<NormQuantCall, &NormQuantCall::read_fused_add, &cuda::run>;
using TokenQuant = Operator<NormQuantCall, &NormQuantCall::read_token_quant, &cuda::run>;
using BlockQuant = Operator<NormQuantCall, &NormQuantCall::read_block_quant, &cuda::run>;

constexpr char kRmsNormFallback[] = "serving_ops::_rms_norm_quant_fallback";
constexpr char kFusedAddFallback[] = "serving_ops::_fused_add_rms_norm_quant_fallback";

template <class Operator>
void into(StableIValue* stack, const char* kinds, const char* fallback) {
  Arguments arguments(stack, kinds);
  Operator::call(arguments, fallback);
}

}  // namespace

void rms_norm_quant_cuda(StableIValue* stack, uint64_t, uint64_t) {
  RmsNorm::call_into(stack, "to.so.obb", kRmsNormFallback, new_quantized<3>);
}
void rms_norm_quant_out_cuda(StableIValue* stack, uint64_t, uint64_t) {
  into<RmsNorm>(stack, "to.so.ott", kRmsNormFallback);
}
void fused_add_rms_norm_quant_cuda(StableIValue* stack, uint64_t, uint64_t) {
  FusedAdd::call_into(stack, "tto.so.obb", kFusedAddFallback, new_quantized<4>);
}
void fused_add_rms_norm_quant_out_cuda(StableIValue* stack, uint64_t, uint64_t) {
  into<FusedAdd>(stack, "tto.so.ott", kFusedAddFallback);
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
