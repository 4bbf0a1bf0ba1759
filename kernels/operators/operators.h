// The operators that register.cpp registers, by the names in contract.def: the kinds of their arguments (arguments.h),
// the Python fallback that takes what C++ does not, and on each device, how a call is read and what runs it. Python
// defines the schemas.
#pragma once

#include "../cpu/backward/run_backward.h"
#include "../cpu/run_rope.h"
#include "../cuda/run.h"
#include "boxed.h"

namespace serving_ops {

struct FusedAdd {
  static constexpr char kKinds[] = "tto..", kFallback[] = "serving_ops::_fused_add_rms_norm_fallback";
};
using FusedAddCpu = Operator<FusedAdd, NormCall, &NormCall::read_fused_add, &cpu::run>;
using FusedAddCuda = Operator<FusedAdd, NormCall, &NormCall::read_fused_add, &cuda::run>;

// add_rms_norm: (x, residual, weight, eps, weight_offset) -> (out, total), the same on copies.
inline void add_rms_norm_cpu(StableIValue* stack, uint64_t, uint64_t) {
  StableIValue sources[] = {stack[0], stack[1]}, in_place[] = {0, 0, stack[2], stack[3], stack[4]};
  Arguments given(sources, "tt");
  Arguments arguments(in_place, "bbo..");
  NewTensor out = NewTensor::copy_of(given.tensor(0)), total = NewTensor::copy_of(given.tensor(1));
  in_place[0] = out.boxed();
  in_place[1] = total.boxed();
  FusedAddCpu::call(arguments);
  stack[0] = out.release();
  stack[1] = total.release();
}

struct RmsNorm {
  static constexpr char kKinds[] = "to..T", kFallback[] = "serving_ops::_rms_norm_fallback";
  static auto results(const Arguments& arguments) { return new_like<0>(arguments); }
};
using RmsNormCpu = Operator<RmsNorm, NormCall, &NormCall::read_rms_norm, &cpu::run>;
using RmsNormCuda = Operator<RmsNorm, NormCall, &NormCall::read_rms_norm, &cuda::run>;

struct Gated {
  static constexpr char kKinds[] = "too.o.siT", kFallback[] = "serving_ops::_rms_norm_gated_fallback";
  static auto results(const Arguments& arguments) { return new_like<0>(arguments); }
};
using GatedCpu = Operator<Gated, GatedCall, &GatedCall::read, &cpu::run>;
using GatedCuda = Operator<Gated, GatedCall, &GatedCall::read, &cuda::run>;

struct NormQuant {
  static constexpr char kKinds[] = "to.sTTo.o", kFallback[] = "serving_ops::_rms_norm_quant_fallback";
  static auto results(const Arguments& arguments) { return new_quantized<3>(arguments); }
};
using NormQuantCpu = Operator<NormQuant, cpu::Int8Call, &cpu::Int8Call::read_rms_norm, &cpu::run>;
using NormQuantCuda = Operator<NormQuant, NormQuantCall, &NormQuantCall::read_rms_norm, &cuda::run>;

struct FusedAddQuant {
  static constexpr char kKinds[] = "tto.sTTo.o", kFallback[] = "serving_ops::_fused_add_rms_norm_quant_fallback";
  static auto results(const Arguments& arguments) { return new_quantized<4>(arguments); }
};
using FusedAddQuantCpu = Operator<FusedAddQuant, cpu::Int8Call, &cpu::Int8Call::read_fused_add, &cpu::run>;
using FusedAddQuantCuda = Operator<FusedAddQuant, NormQuantCall, &NormQuantCall::read_fused_add, &cuda::run>;

struct GatedQuant {
  static constexpr char kKinds[] = "too.sTToo.sio", kFallback[] = "serving_ops::_rms_norm_gated_quant_fallback";
  static auto results(const Arguments& arguments) { return new_quantized<4>(arguments); }
};
using GatedQuantCuda = Operator<GatedQuant, GatedQuantCall, &GatedQuantCall::read, &cuda::run>;

// With the schemas of vLLM's _C operators: (result, input, weight, scale, epsilon, scale_ub, residual), and the same
// with group_size, is_scale_transposed.
struct TokenQuant {
  static constexpr char kKinds[] = "tttt.oo";
  static constexpr char kFallback[] = "serving_ops::_vllm_rms_norm_dynamic_per_token_quant_fallback";
};
using TokenQuantCuda = Operator<TokenQuant, NormQuantCall, &NormQuantCall::read_token_quant, &cuda::run>;

struct BlockQuant {
  static constexpr char kKinds[] = "tttt.oo..", kFallback[] = "serving_ops::_vllm_rms_norm_per_block_quant_fallback";
};
using BlockQuantCuda = Operator<BlockQuant, NormQuantCall, &NormQuantCall::read_block_quant, &cuda::run>;

struct Rope {
  static constexpr auto& kKinds = RopeCall::kKinds;
  static constexpr char kFallback[] = "serving_ops::_qk_norm_rope_fallback";
};
using RopeCpu = Operator<Rope, RopeCall, &RopeCall::read, &cpu::run>;
using RopeCuda = Operator<Rope, RopeCall, &RopeCall::read, &cuda::run>;

// The same with few arguments, for vLLM's layers: integrations/vllm/qk_norm_rope_layer.py defines it.
struct ShortRope {
  static constexpr auto& kKinds = RopeCall::kShortKinds;
  static constexpr char kFallback[] = "serving_ops::_vllm_qk_norm_rope_fallback";
};
using ShortRopeCpu = Operator<ShortRope, RopeCall, &RopeCall::read_short, &cpu::run>;
using ShortRopeCuda = Operator<ShortRope, RopeCall, &RopeCall::read_short, &cuda::run>;

// Gradients of s and weight; of x, z, weight and bias.
struct NormBackward {
  static constexpr char kKinds[] = "tto..oTT", kFallback[] = "serving_ops::_rms_norm_backward_fallback";
  static auto results(const Arguments& arguments) { return new_like<1, 2>(arguments); }
};
using NormBackwardCpu = Operator<NormBackward, NormBackwardCall, &NormBackwardCall::read, &cpu::run>;

struct GatedBackward {
  static constexpr char kKinds[] = "ttoo.o.siTTTT", kFallback[] = "serving_ops::_rms_norm_gated_backward_fallback";
  static auto results(const Arguments& arguments) { return new_like<1, 2, 3, 5>(arguments); }
};
using GatedBackwardCpu = Operator<GatedBackward, GatedBackwardCall, &GatedBackwardCall::read, &cpu::run>;

}  // namespace serving_ops
