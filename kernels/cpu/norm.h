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

// Where the gradient of a weight or a bias goes, (N,), contiguous; data is null where none is wanted.
struct Gradient {
  void* data = nullptr;
  Dtype dtype = Dtype::float32;
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
  // dweight gets that of weight added, arranged as the kernel likes: whole_blocks(size) floats, and as many behind them
  // to work in, all zero before the first rows; may be null
  void (*rms_norm_backward)(const NormSpec&, Rows dout, Rows s, Rows more, Rows ds, float* dweight, int64_t num_rows);
  // dx, dz <- the gradients of x and z; dweight and dbias as above, whole_blocks(group_size) floats for each group. z.data
  // and dz.data are null where there is no gate
  void (*rms_norm_gated_backward)(const GatedNormSpec&, Rows dout, Rows x, Rows z, Rows dx, Rows dz, float* dweight,
                                  float* dbias, int64_t num_rows);
  // gradient <- the sum of num_parts such sums over rows of `dtype`, each `stride` floats behind the one before
  void (*sum_of_parts)(Dtype dtype, const float* parts, int64_t num_parts, int64_t stride, int64_t size, Gradient gradient);
};

}  // namespace serving_ops::cpu
