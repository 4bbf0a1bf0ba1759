// The CPU kernels' interface, in plain data: no torch here.
#pragma once

#include "../operators/spec.h"

namespace serving_ops::cpu {

// Rows of one operand: where the first begins, and the distance to the next, in elements.
struct Rows {
  void* data = nullptr;
  int64_t stride = 0;
  int64_t ahead = 0;  // distance from a row to the one to fetch into the cache meanwhile, in elements
};

// Elements of the longest block of any instruction set.
constexpr int64_t kLongestBlock = 32;
constexpr int64_t whole_blocks(int64_t size) { return (size + kLongestBlock - 1) / kLongestBlock * kLongestBlock; }

// One instruction set's kernels. Each takes num_rows rows of constant strides; out may be x. The bits of a row depend
// on the spec and the row's values alone.
struct Kernels {
  const char* isa;
  // residual <- x + residual; x <- norm(x + residual) * weight
  void (*fused_add_rms_norm)(const NormSpec&, Rows x, Rows residual, int64_t num_rows);
  // out <- norm(x) * weight
  void (*rms_norm)(const NormSpec&, Rows x, Rows out, int64_t num_rows);
  // out <- norm(x) * weight + bias, gated by z before or after; z.data is null where there is no gate
  void (*rms_norm_gated)(const GatedNormSpec&, Rows x, Rows z, Rows out, int64_t num_rows);
  // ds <- the gradient of s, where norm(s) * weight has the gradient dout, plus more, whose data may be null
  // dweight <- that of weight, summed over these rows, with whole_blocks(size) behind it to work in; may be null
  void (*rms_norm_backward)(const NormSpec&, Rows dout, Rows s, Rows more, Rows ds, float* dweight, int64_t num_rows);
};

}  // namespace serving_ops::cpu
