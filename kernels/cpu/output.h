// How the results of a few rows are written: a functor takes them block by block. V is what rounds them.
#pragma once

#include "blocks.h"

namespace serving_ops::cpu {
namespace {

// Rounded to X.
template <class V, class X>
struct Rounded : FewRows<V, X> {
  using FewRows<V, X>::FewRows;
  template <class Rounding, class Size>
  void write(int m, int64_t i, typename V::Pair y, Size part) const {
    Rounding::store(this->at(m, i), y, part);
  }
  void end(int, int64_t) const {}
};

// Rounded to X, and then quantized to int8 with a scale a row, amax / 127: as serving_ops/reference.py has it.
template <class V, class X>
struct Int8 {
  using Pair = typename V::Pair;
  FewRows<V, X> rounded;
  FewRows<V, int8_t> quantized;
  FewRows<V, float> scales;
  typename V::Signed largest[kRowsAtOnce] = {};  // magnitudes, as bits

  // scratch_stride: of the rows of scratch, in fp32. A row rounded lies over the sums that it is made of, and behind
  // those that are still to be read.
  Int8(const NormRows& rows, int64_t scratch_stride, int64_t first, int count)
      : rounded(rows.out, first, count), quantized(rows.q, first, count), scales(rows.scales, first, count) {
    if (rounded.data != nullptr) return;
    rounded.data = reinterpret_cast<X*>(rows.scratch);
    rounded.stride = scratch_stride * static_cast<int64_t>(sizeof(float) / sizeof(X));
  }
  template <class Rounding, class Size>
  void write(int m, int64_t i, Pair y, Size part) {
    Rounding::store(rounded.at(m, i), y, part);
    largest[m] = Rounding::larger(largest[m], y, X{});
  }
  // Once all blocks of `count` rows are written.
  void end(int count, int64_t size) const {
    constexpr float kLimit = 127.0f;
    for (int m = 0; m < count; ++m) {
      const float amax = V::magnitude(largest[m], X{});
      const float inverse = amax == 0.0f ? 0.0f : kLimit / amax;
      *scales.at(m, 0) = amax / kLimit;
      if (inverse == __builtin_inff()) quantize<true>(m, size, inverse);
      else quantize<false>(m, size, inverse);
    }
  }

 private:
  // Products with a finite inverse need no saturation: none is beyond the limit, or all are 0 or NaN.
  template <bool saturate>
  void quantize(int m, int64_t size, float inverse) const {
    const auto scaled = [=](typename V::Vec y) {
      if constexpr (!saturate) return y * inverse;
      return V::at_most(V::at_least(y * inverse, V::broadcast(-128.0f)), V::broadcast(127.0f));
    };
    const FewRows<V, X> row = rounded;
    int8_t* out = quantized.at(m, 0);
    const auto limited = [=](int64_t i, auto part) {
      const Pair y = row.load(m, i, part);
      return Pair{scaled(y.a), scaled(y.b)};
    };
    const int64_t in_twos = size / (2 * V::kBlock) * (2 * V::kBlock);
    for (int64_t i = 0; i < in_twos; i += 2 * V::kBlock)
      V::store_two_int8(out + i, limited(i, Full{}), limited(i + V::kBlock, Full{}), X{});
    for_each_block<V>(size - in_twos, [&](int64_t i, auto part) {
      V::store_int8(out + in_twos + i, limited(in_twos + i, part), X{}, part);
    });
  }
};

}  // namespace
}  // namespace serving_ops::cpu
