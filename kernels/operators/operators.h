// The operators that register.cpp registers, by the names in contract.def: each op's name, by which C++ calls its Python
// fallback, the kinds of its arguments (arguments.h) and their names (`Places` in calls.h), and what runs its calls on each
// device. Python defines the schemas.
#pragma once

#include "../cpu/backward/run_backward.h"
#include "../cuda/run.h"
#include "boxed.h"

namespace serving_ops {

template <class Op>
using OnCpu = Operator<Op, &cpu::run>;
template <class Op>
using OnCuda = Operator<Op, &cuda::run>;

// What an op's arguments are read into.
template <class Read>
struct ReadAs {
  using Call = Read;
};

struct FusedAdd : ReadAs<NormCall> {
  static constexpr char kName[] = "fused_add_rms_norm", kKinds[] = "tto..";
  static constexpr char kArguments[] = "x residual weight eps weight_offset";
};

// add_rms_norm: (x, residual, weight, eps, weight_offset) -> (out, total), the same on copies.
inline void add_rms_norm_cpu(StableIValue* stack, uint64_t, uint64_t) {
  StableIValue sources[] = {stack[0], stack[1]}, in_place[] = {0, 0, stack[2], stack[3], stack[4]};
  Arguments given(sources, "tt");
  Arguments arguments(in_place, "bbo..");
  const auto copy = [&given](int i) {
    return given.naming_none(FusedAdd::kArguments, [&] { return NewTensor::copy_of(given.tensor(i)); });
  };
  NewTensor out = copy(0), total = copy(1);
  in_place[0] = out.boxed();
  in_place[1] = total.boxed();
  OnCpu<FusedAdd>::call(arguments);
  stack[0] = out.release();
  stack[1] = total.release();
}

struct RmsNorm : ReadAs<NormCall> {
  static constexpr char kName[] = "rms_norm", kKinds[] = "to..T";
  static constexpr char kArguments[] = "x weight eps weight_offset out";
  static auto results(const Arguments& arguments) { return new_like<0>(arguments); }
};

// Two norms in a row: the first leaves the sum of x and residual to the second, which adds both.
struct NormOfSum : ReadAs<NormCall> {
  static constexpr char kName[] = "rms_norm_of_sum", kKinds[] = "tto..T";
  static constexpr char kArguments[] = "x residual weight eps weight_offset out";
  static auto results(const Arguments& arguments) { return new_like<0>(arguments); }
};

struct FusedAddTwo : ReadAs<NormCall> {
  static constexpr char kName[] = "fused_add_two_rms_norm", kKinds[] = "ttto..";
  static constexpr char kArguments[] = "x residual earlier weight eps weight_offset";
};

struct Gated : ReadAs<NormCall> {
  static constexpr char kName[] = "rms_norm_gated", kKinds[] = "too.o.siT";
  static constexpr char kArguments[] = "x z weight eps bias norm_before_gate activation group_size out";
  static auto results(const Arguments& arguments) { return new_like<0>(arguments); }
};

struct NormQuant : ReadAs<NormCall> {
  static constexpr char kName[] = "rms_norm_quant", kKinds[] = "to.sTTo.o";
  static constexpr char kArguments[] = "x weight eps fmt out scales_out scale weight_offset normed";
  static auto results(const Arguments& arguments) { return new_quantized<NormQuant>(arguments); }
};

struct FusedAddQuant : ReadAs<NormCall> {
  static constexpr char kName[] = "fused_add_rms_norm_quant", kKinds[] = "tto.sTTo.o";
  static constexpr char kArguments[] = "x residual weight eps fmt out scales_out scale weight_offset normed";
  static auto results(const Arguments& arguments) { return new_quantized<FusedAddQuant>(arguments); }
};

struct GatedQuant : ReadAs<NormCall> {
  static constexpr char kName[] = "rms_norm_gated_quant", kKinds[] = "too.sTToo.sio";
  static constexpr char kArguments[] =
      "x z weight eps fmt out scales_out scale bias norm_before_gate activation group_size normed";
  static auto results(const Arguments& arguments) { return new_quantized<GatedQuant>(arguments); }
};

// With the schemas of vLLM's _C operators, whose is_scale_transposed the strides of the scales say too.
struct TokenQuant : ReadAs<NormCall> {
  static constexpr char kName[] = "vllm_rms_norm_dynamic_per_token_quant", kKinds[] = "tttt.oo";
  static constexpr char kArguments[] = "out x weight scales_out eps scale_ub residual";
};

struct BlockQuant : ReadAs<NormCall> {
  static constexpr char kName[] = "vllm_rms_norm_per_block_quant", kKinds[] = "tttt.oo..";
  static constexpr char kArguments[] = "out x weight scales_out eps scale_ub residual group_size";
};

struct Rope : ReadAs<RopeCall> {
  static constexpr char kName[] = "qk_norm_rope", kKinds[] = "tttoo.....i.l.ooooooo";
  static constexpr char kArguments[] = "qkv positions cos_sin_cache";  // and more
  static constexpr bool kIsShort = false;
};

// The same with few arguments, for engines' layers: integrations/common/rope_text.py defines them.
struct ShortRope : ReadAs<RopeCall> {
  static constexpr char kName[] = "qk_norm_rope_short", kKinds[] = "ttttts";
  static constexpr char kArguments[] = "qkv positions cos_sin_cache q_weight k_weight options";
  static constexpr bool kIsShort = true, kIsCached = false;
};

struct ShortCachedRope : ReadAs<RopeCall> {
  static constexpr char kName[] = "qk_norm_rope_short_cached", kKinds[] = "tttttsoottt";
  static constexpr char kArguments[] =
      "qkv positions cos_sin_cache q_weight k_weight options k v key_cache value_cache slot_mapping";
  static constexpr bool kIsShort = true, kIsCached = true;
};

// The gradients.
struct NormBackward : ReadAs<BackwardCall> {
  static constexpr char kName[] = "rms_norm_backward", kKinds[] = "tto..oTT";
  static constexpr char kArguments[] = "dout x weight eps weight_offset ds_more dx dweight";
  static auto results(const Arguments& arguments) { return new_like<1, 2>(arguments); }
};

struct GatedBackward : ReadAs<BackwardCall> {
  static constexpr char kName[] = "rms_norm_gated_backward", kKinds[] = "ttoo.o.siTTTT";
  static constexpr char kArguments[] = "dout x z weight eps bias norm_before_gate activation group_size dx dz dweight dbias";
  static auto results(const Arguments& arguments) { return new_like<1, 2, 3, 5>(arguments); }
};

}  // namespace serving_ops
