// What a call has for a kernel, and which of it a kernel is passed.
#pragma once

#include <algorithm>
#include <cstdint>

namespace serving_ops::cuda {

using pointer = const void*;
using i32 = int32_t;
using i64 = int64_t;
using fp32 = float;

// Strides in elements; 0 where there is one dimension.
struct Rows {
  pointer ptr;
  int64_t outer_stride, row_stride;
};

// Each field begins on a word, so that a number names it. A kernel is passed those of its own op, which sets them all.
struct Fields {
#define FIELD(name, type) alignas(uint64_t) type name;
#define ROWS(name) Rows name;
#include "../contract.def"
};

constexpr int kNumFields = sizeof(Fields) / sizeof(uint64_t);

// The fields that a kernel's parameters are, in order. Python derives it from the parameters' names
// (kernels/triton/launch.py).
class Recipe {
 public:
  static constexpr int kMaxParameters = kNumFields + 1;  // each field once, and `scratch` twice

  Recipe() = default;
  Recipe(const uint8_t* fields, int count) : count_(static_cast<uint8_t>(std::min(count, kMaxParameters))) {
    std::copy_n(fields, count_, fields_);
  }
  // The addresses of a kernel's parameters, as the driver takes them.
  void point(Fields* fields, void* (&parameters)[kMaxParameters]) const {
    auto* words = reinterpret_cast<uint64_t*>(fields);
    for (int i = 0; i < count_; ++i) parameters[i] = words + fields_[i];
  }

 private:
  uint8_t count_ = 0;
  uint8_t fields_[kMaxParameters];
};

}  // namespace serving_ops::cuda
