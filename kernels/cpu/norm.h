// What the CPU kernels compute, in plain data: no torch here, so that every instruction set's kernels build and are
// checked without it.
#pragma once

#include <cstdint>

namespace serving_ops::cpu {

enum class Dtype : uint8_t { float32, bfloat16, float16 };

constexpr int64_t element_bytes(Dtype dtype) { return dtype == Dtype::float32 ? 4 : 2; }

// Rows of one operand: where the first begins, and the distance to the next, in elements.
struct Rows {
  void* data = nullptr;
  int64_t stride = 0;
  int64_t ahead = 0;  // distance from a row to the one to fetch into the cache meanwhile, in elements
};

// A weight or a bias, (N,), contiguous; data is null where there is none.
struct Param {
  const void* data = nullptr;
  Dtype dtype = Dtype::float32;
};

struct NormSpec {
  int64_t size;  // N, elements a row
  double eps;
  float weight_offset;
  Dtype dtype;  // of x, residual and out
  Param weight;
};

struct GatedNormSpec {
  int64_t size;        // N, elements a row
  int64_t group_size;  // elements a group, divides size
  double eps;
  Dtype dtype;  // of x, z and out
  Param weight;
  Param bias;
  bool norm_before_gate;
  bool silu;  // gate is z * sigmoid(z); otherwise sigmoid(z)
};

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
};

}  // namespace serving_ops::cpu
