// An instruction set's table of kernels.
#pragma once

#include "isa.h"
#include "qk_norm_rope.h"
#include "rms_norm.h"
#include "backward/rms_norm_backward.h"
#include "rms_norm_gated.h"
#include "backward/rms_norm_gated_backward.h"

namespace serving_ops::cpu {
namespace {

template <class V>
constexpr Kernels kernels_of(const char* isa) {
  return {isa, RmsNorm<V>::rms_norm, RmsNorm<V>::rms_norm_int8, QkNormRope<V>::qk_norm_rope,
          RmsNormGated<V>::rms_norm_gated, RmsNormBackward<V>::rms_norm_backward,
          RmsNormGatedBackward<V>::rms_norm_gated_backward, OverRows<V>::sum_of_parts};
}

}  // namespace
}  // namespace serving_ops::cpu
