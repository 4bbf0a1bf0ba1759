// What the row kernels share: walking a row block by block, its sum of squares, and the loading of parameters. V is an
// instruction set (Generic in vec.h says what it offers), X the dtype of the activations.
#pragma once

#include "vec.h"

namespace serving_ops::cpu {
namespace {

// body(i, Full{}) for each whole block, body(i, Part{n}) for what is left.
template <class V, class Body>
inline void for_each_block(int64_t size, Body body) {
  int64_t i = 0;
  for (; i + V::kBlock <= size; i += V::kBlock) body(i, Full{});
  if (i < size) body(i, Part{static_cast<int>(size - i)});
}

constexpr int64_t kLine = 64;  // bytes, of the cache

// Ask for every cache line of a block that comes later; to be written, where `to_write`.
template <class V, bool to_write = false, class X>
inline void fetch(const X* block) {
  for (int64_t line = 0; line < static_cast<int64_t>(V::kBlock * sizeof(X)); line += kLine)
    __builtin_prefetch(reinterpret_cast<const char*>(block) + line, to_write);
}

template <int kCount>
struct Known {  // a count that the compiler knows
  constexpr operator int() const { return kCount; }
};

// f(first, count) for as many rows at once as pays, until num_rows are done: kWide long ones, or kRowsAtOnce short ones.
// count is Known<kWide> or an int.
template <int kWide = 1, class F>
inline void for_each_few_rows(int64_t num_rows, int64_t size, F f) {
  int64_t m = 0;
  if (size > kShortRow)
    for (; m + kWide <= num_rows; m += kWide) f(m, Known<kWide>{});
  for (; m < num_rows; m += kRowsAtOnce)
    f(m, static_cast<int>(num_rows - m < kRowsAtOnce ? num_rows - m : kRowsAtOnce));
}

// A few rows of an operand, from a column on; data is null where a call lacks it.
template <class V, class X>
struct FewRows {
  X* data;
  int64_t stride;
  // To the row to fetch meanwhile, where `count` rows are worked on at once: one row on, it is mostly there already.
  // 2048 x 16 x 128 gated, fp32, one core of Zen 5, every line fetched: 1.6 ms instead of 3.7.
  int64_t ahead;

  FewRows(Rows rows, int64_t first, int count, int64_t column = 0)
      : data(static_cast<X*>(rows.data)),
        stride(rows.stride),
        ahead(rows.ahead == rows.stride ? count * rows.stride : rows.ahead) {
    if (data != nullptr) data += first * stride + column;
  }
  X* at(int m, int64_t i) const { return data + m * stride + i; }
  template <class Size>
  typename V::Pair load(int m, int64_t i, Size part) const {
    return V::load(at(m, i), part);
  }
  template <bool to_write = false>
  void fetch(int m, int64_t i) const {
    cpu::fetch<V, to_write>(at(m, i) + ahead);
  }
};

template <class V, class Pair = typename V::Pair>
inline Pair fma(Pair x, Pair y, Pair z) {
  return {V::fma(x.a, y.a, z.a), V::fma(x.b, y.b, z.b)};
}

// What pass 1 finds in a row.
struct RowSums {
  float squares;   // the sum of the squares
  float smallest;  // the smallest magnitude that is not zero, where asked for; otherwise infinity
};

// Adds up a row in kWays sums at once: add(i, part, sum, way) adds the block at i. The order of the additions depends on
// the size alone. Partial sums of at most 32 additions keep the error below that of a cascade sum.
template <class V, int kWays, class Sum, class Add>
inline void add_up_row(int64_t size, Sum (&total)[kWays], Add add) {
  constexpr int64_t kStep = kWays * V::kBlock, kRun = 32 * kStep;
  int64_t i = 0;
  while (i + kStep <= size) {
    Sum partial[kWays] = {};
    const int64_t last = (size - i < kRun ? size : i + kRun) - kStep;
    for (; i <= last; i += kStep)
      for (int way = 0; way < kWays; ++way) add(i + way * V::kBlock, Full{}, partial[way], way);
    for (int way = 0; way < kWays; ++way) total[way] = total[way] + partial[way];
  }
  for (; i + V::kBlock <= size; i += V::kBlock) add(i, Full{}, total[0], 0);
  if (i < size) add(i, Part{static_cast<int>(size - i)}, total[0], 0);
}

// Pass 1 over a row whose block at i is load(i, part).
template <class V, bool find_smallest, class Load>
inline RowSums sum_row(int64_t size, Load load) {
  using Vec = typename V::Vec;
  using Pair = typename V::Pair;
  Pair total[4] = {};  // as many in flight hide the latency of fma
  const Vec infinity = V::broadcast(__builtin_inff());
  Vec smallest[4] = {infinity, infinity, infinity, infinity};
  add_up_row<V>(size, total, [&](int64_t i, auto part, Pair& sum, int way) {
    const Pair v = load(i, part);
    sum = fma<V>(v, v, sum);
    if constexpr (find_smallest) smallest[way] = V::smaller_nonzero(V::smaller_nonzero(smallest[way], v.a), v.b);
  });
  RowSums sums;
  sums.squares = V::sum(((total[0].a + total[0].b) + (total[1].a + total[1].b)) +
                        ((total[2].a + total[2].b) + (total[3].a + total[3].b)));
  sums.smallest = find_smallest ? V::smallest(V::at_most(V::at_most(smallest[0], smallest[1]),
                                                         V::at_most(smallest[2], smallest[3])))
                                : __builtin_inff();
  return sums;
}

// 1 / sqrt(sum / size + eps), in double up to the last rounding.
inline float inverse_rms(float sum, double inverse_size, double eps) {
  return static_cast<float>(1.0 / __builtin_sqrt(sum * inverse_size + eps));
}

// Elements i.. of a parameter of dtype W, arranged as a pair made of X is.
template <class V, class X, class W, class Size>
inline typename V::Pair load_param(const W* p, Size part) {
  const typename V::Pair v = V::load(p, part);
  if constexpr (__is_same(X, bf16) && !__is_same(W, bf16)) return V::even_odd(v);
  return v;
}

// Stores v, arranged as a pair made of X is, in a row of dtype R.
template <class V, class X, class R, class Size>
inline void store_arranged(R* p, typename V::Pair v, Size part) {
  if constexpr (__is_same(X, bf16) && !__is_same(R, bf16)) v = V::in_order(v);
  V::store(p, v, part);
}

// f(X{}) with the storage type of a dtype.
template <class F>
inline void with_dtype(Dtype dtype, F f) {
  switch (dtype) {
    case Dtype::float32: return f(float{});
    case Dtype::bfloat16: return f(bf16{});
    case Dtype::float16: return f(fp16{});
  }
}

}  // namespace
}  // namespace serving_ops::cpu
