// From a call of qk_norm_rope to kernel runs: threads and tokens.
#pragma once

#include "../operators/rope_call.h"
#include "threads.h"

namespace serving_ops::cpu {

inline bool run(const RopeCall& call) {
  const RopeSpec& spec = call.spec;
  const Heads q{call.q_heads.data, call.num_q_heads, call.q_heads.token_stride, call.q_heads.head_stride, spec.norm.weight};
  const Heads k{call.k_heads.data, call.num_kv_heads, call.k_heads.token_stride, call.k_heads.head_stride, call.k_weight};
  Angles angles{call.table.data, call.table.strides[0], call.positions.data, call.positions.item_bytes == 8,
                call.positions.strides[call.positions.num_dims - 1], call.positions.strides[0], nullptr};
  const int64_t work = (q.count + k.count) * spec.norm.size * kRopeWork;
  for_each_chunk(call.num_tokens, work, [&, kernel = chosen_kernels().qk_norm_rope](int64_t begin, int64_t end) {
    Angles of_thread = angles;
    of_thread.scratch = scratch(angles_elements(spec.rotary_dim));
    kernel(spec, q, k, of_thread, begin, end);
  });
  count(kQkNormRope);
  return true;
}

}  // namespace serving_ops::cpu
