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

// The rows of a norm; data is null for those that a call lacks.
struct NormRows {
  Rows x, second, out;  // second: the residual, or the gate
  Rows q, scales;       // int8, and one scale a row; `out` has the rows before they are quantized
  float* scratch;       // scratch_elements(size) of them, with int8
};

// The rows of a norm's gradients, as well.
struct BackwardRows {
  Rows dout, x, second, dx, dsecond;  // second: what is added to dx, or the gate, which alone has a gradient
  float *dweight, *dbias;             // sums over rows; null for those that a call lacks
};

// Rows of the table of cosines and sines, and which of them each token has.
struct Angles {
  const void* table;
  int64_t row_stride;
  Positions positions;
  float* scratch;  // angles_elements(rotary_dim) floats
};

// Elements of the longest block of any instruction set.
constexpr int64_t kLongestBlock = 32;
constexpr int64_t whole_blocks(int64_t size) { return (size + kLongestBlock - 1) / kLongestBlock * kLongestBlock; }

// Cosines and sines in fp32, and with MRoPE a row of the table before them.
constexpr int64_t angles_elements(int64_t rotary_dim) { return 2 * whole_blocks(rotary_dim / 2) + rotary_dim; }

// Short rows are worked on several at once, a sum for each, then a root for each, then the results: a row alone would
// wait for its own sum and root. A call on 128 rows of 128, bf16, one core of Zen 5: 5.4 us instead of 6.3 gated, 4.0
// instead of 4.7 plain.
constexpr int kRowsAtOnce = 8;
constexpr int64_t kShortRow = 512;  // elements; eight such rows of two operands stay in the L1 cache
constexpr int64_t scratch_elements(int64_t size) {
  return (size <= kShortRow ? kRowsAtOnce : 1) * whole_blocks(size);
}

// One instruction set's kernels. Each takes num_rows rows of constant strides; out may be x. The bits of a row depend
// on the spec and the row's values alone.
struct Kernels {
  const char* isa;
  // out <- norm(x) * weight; with second, second <- x + second, which is normed instead
  void (*rms_norm)(const NormSpec&, const NormRows&, int64_t num_rows);
  // q, scales, out <- the same result, rounded and then quantized; x is only read
  void (*rms_norm_int8)(const NormSpec&, const NormRows&, int64_t num_rows);
  // The heads of tokens first..last: normalised, rounded, rotated, rounded
  void (*qk_norm_rope)(const RopeSpec&, const Heads& q, const Heads& k, const Angles&, int64_t first, int64_t last);
  // out <- norm(x) * weight + bias, gated by second before or after
  void (*rms_norm_gated)(const NormSpec&, const NormRows&, int64_t num_rows);
  // dx <- the gradient of x, where norm(x) * weight has the gradient dout, plus second. dweight gets that of weight added,
  // arranged as the kernel likes: whole_blocks(group_size) floats for each group, and as many behind them all to work in,
  // all zero before the first rows
  void (*rms_norm_backward)(const NormSpec&, const BackwardRows&, int64_t num_rows);
  // dx, dsecond <- the gradients of x and the gate; dweight and dbias as above
  void (*rms_norm_gated_backward)(const NormSpec&, const BackwardRows&, int64_t num_rows);
  // gradient <- the sum of num_parts such sums over rows of `dtype`, each `stride` floats behind the one before
  void (*sum_of_parts)(Dtype dtype, const float* parts, int64_t num_parts, int64_t stride, int64_t size, Gradient gradient);
};

}  // namespace serving_ops::cpu
