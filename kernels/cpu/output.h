// How the results of a few rows are written: a functor takes them block by block. V is what rounds them.
#pragma once

#include "blocks.h"

namespace serving_ops::cpu {
namespace {

// Rounded to X.
template <class X>
struct Rounded {
  X* data;
  int64_t stride;
  Rounded(Rows rows, int64_t first, int64_t column = 0)
      : data(static_cast<X*>(rows.data) + first * rows.stride + column), stride(rows.stride) {}
  template <class V, class Size>
  void write(int m, int64_t i, typename V::Pair y, Size part) const {
    V::store(data + m * stride + i, y, part);
  }
};

}  // namespace
}  // namespace serving_ops::cpu
