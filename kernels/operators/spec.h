// What the operators compute, in plain data: no torch here, so that every instruction set's kernels build and are
// checked without it.
#pragma once

#include <cstdint>

namespace serving_ops {

enum class Dtype : uint8_t {
#define DTYPE(name) name,
#include "../contract.def"
};

enum class ScaleForm : uint8_t {
#define SCALE_FORM(name) name,
#include "../contract.def"
};

constexpr int64_t element_bytes(Dtype dtype) { return dtype == Dtype::float32 ? 4 : 2; }

// A weight or a bias, (N,), contiguous; data is null where there is none.
struct Param {
  const void* data = nullptr;
  Dtype dtype = Dtype::float32;
};

struct NormSpec {
  int64_t size;  // N, elements a row
  double eps;
  float weight_offset;
  Dtype dtype;  // of x, out and a gate
  Param weight;
  bool fp32_residual = false;  // beside rows of half precision
  // Of gated norms.
  int64_t group_size = size;  // elements a group, divides size
  Param bias = {};
  bool norm_before_gate = false;
  bool silu = false;  // gate is z * sigmoid(z); otherwise sigmoid(z)
};

// How a result is quantized (serving_ops/quant_format.py).
struct QuantFormat {
  enum Granularity : uint8_t { kTensor, kToken, kGroup };
  enum Layout : uint8_t { kRowMajor, kColumnMajor, kTmaAligned };

  bool int8;  // otherwise FP8 E4M3
  Granularity granularity;
  int64_t group_size;  // elements, with kGroup
  ScaleForm scale_form;
  Layout scale_layout;
};

// The heads of q, k or v in the rows of tokens. Strides in elements; a weight where they are normalised.
struct Heads {
  void* data;
  int64_t count, token_stride, head_stride;
  Param weight;
};

// The positions of tokens: one each, or three with sections. Strides in elements.
struct Positions {
  const void* data;
  bool are_wide;  // int64, otherwise int32
  int64_t token_stride, axis_stride;

  int64_t operator()(int64_t token, int64_t axis) const {
    const int64_t i = token * token_stride + axis * axis_stride;
    return are_wide ? static_cast<const int64_t*>(data)[i] : static_cast<const int32_t*>(data)[i];
  }
};

struct RopeSpec {
  NormSpec norm;       // of a head; its weight is q's
  int64_t rotary_dim;  // the first elements of a head that are rotated, even
  bool is_neox;        // pairs are halves of these; otherwise neighbours
  Dtype table_dtype;   // of cosines and sines
  bool has_sections;   // a token has three positions (MRoPE), and each rotates a section of the pairs
  int64_t section[3];  // pairs
  bool taking_turns;   // sections are interleaved

  // Which of the three positions a pair is rotated by.
  int64_t axis_of(int64_t pair) const {
    if (!taking_turns) return (pair >= section[0]) + (pair >= section[0] + section[1]);
    const int64_t axis = pair % 3;
    return axis > 0 && pair < 3 * section[axis] ? axis : 0;
  }
};

}  // namespace serving_ops
