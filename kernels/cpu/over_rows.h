// What the gradients share: a row's sums, and sums over rows, such as the gradients of weight and bias.
#pragma once

#include "blocks.h"

namespace serving_ops::cpu {
namespace {

// Rows per pass over the sums over rows. Processing k rows together reads and writes these sums once per k rows; k is
// small for wide rows, so that they are still in the cache when their own sums are known. 512 x 1024 and 4096 x 2048,
// bf16, one core of Zen 5: 63 and 1880 us with k = 2, 67 and 2400 us with 4, 70 and 2140 us with 1.
constexpr int kWideRowsAtOnce = 2;

struct Few {  // a count that the compiler knows
  constexpr operator int() const { return kWideRowsAtOnce; }
};

template <class V>
struct OverRows {
  using Pair = typename V::Pair;

  // A few rows of an operand, from a column on.
  template <class X>
  struct FewRows {
    X* data;
    int64_t stride;
    FewRows(Rows rows, int64_t first, int64_t column = 0)
        : data(rows.data == nullptr ? nullptr : static_cast<X*>(rows.data) + first * rows.stride + column),
          stride(rows.stride) {}
    template <class Size>
    Pair load(int m, int64_t i, Size part) const {
      return V::load(data + m * stride + i, part);
    }
    // Row m of the next few.
    void fetch(int m, int64_t i) const {
      cpu::fetch<V>(data + m * stride + i);
    }
    void fetch_to_write(int m, int64_t i) const {
      cpu::fetch<V, true>(data + m * stride + i);
    }
    template <class Size>
    void store(int m, int64_t i, Pair v, Size part) const {
      V::store(data + m * stride + i, v, part);
    }
  };

  // A sum in fp32 errs by as much as it has additions, so the rows are added up in two steps: a run of kRun rows or a
  // few more, then all runs. Both are arranged as pairs made of the rows' dtype are.
  static constexpr int64_t kRun = 16;
  struct Sum {
    float *total, *run;
    Sum() : total(nullptr), run(nullptr) {}
    Sum(float* data, int64_t size) : total(data), run(data == nullptr ? nullptr : data + size) {}
    explicit operator bool() const { return run != nullptr; }
  };

  static void end_run(Sum sum, int64_t size) {
    if (!sum) return;
    for (int64_t i = 0; i < size; i += V::kBlock) {
      const Pair a = V::load(sum.run + i, Full{}), b = V::load(sum.total + i, Full{});
      V::store(sum.total + i, Pair{a.a + b.a, a.b + b.b}, Full{});
      V::store(sum.run + i, Pair{}, Full{});
    }
  }

  // f(first, count) until num_rows are done; count is Few or an int up to kRowsAtOnce. end_of_run() between them.
  template <class F, class EndOfRun>
  static void for_each_few(int64_t num_rows, int64_t size, F f, EndOfRun end_of_run) {
    int64_t in_run = 0;
    for (int64_t m = 0; m < num_rows;) {
      const int64_t most = size <= kShortRow ? kRowsAtOnce : kWideRowsAtOnce;
      const int count = static_cast<int>(num_rows - m < most ? num_rows - m : most);
      if (size > kShortRow && count == kWideRowsAtOnce) f(m, Few{});
      else f(m, count);
      m += count, in_run += count;
      if (in_run < kRun && m < num_rows) continue;
      end_of_run();
      in_run = 0;
    }
  }

  // For s, what is normed, and dn, the gradient of the norm: the sums of s^2 and of s * dn, whose block at i is
  // load(i, part). In partial sums of at most 32 additions a lane, as in sum_row of blocks.h.
  struct Operands {
    Pair s, dn;
  };
  struct Products {
    float squares, products;
  };
  template <class Load>
  static Products sum_row(int64_t size, Load load) {
    constexpr int kWays = 2;  // of two pairs each: hides the latency of fma
    constexpr int64_t kStep = kWays * V::kBlock, kRunElements = 32 * kStep;
    Pair squares[kWays] = {}, products[kWays] = {};
    const auto add = [&](int64_t i, auto part, Pair& square, Pair& product) {
      const Operands v = load(i, part);
      square = {V::fma(v.s.a, v.s.a, square.a), V::fma(v.s.b, v.s.b, square.b)};
      product = {V::fma(v.s.a, v.dn.a, product.a), V::fma(v.s.b, v.dn.b, product.b)};
    };
    const auto join = [](Pair to, Pair from) { return Pair{to.a + from.a, to.b + from.b}; };
    int64_t i = 0;
    while (i + kStep <= size) {
      Pair square[kWays] = {}, product[kWays] = {};
      const int64_t last = (size - i < kRunElements ? size : i + kRunElements) - kStep;
      for (; i <= last; i += kStep)
        for (int way = 0; way < kWays; ++way) add(i + way * V::kBlock, Full{}, square[way], product[way]);
      for (int way = 0; way < kWays; ++way) {
        squares[way] = join(squares[way], square[way]);
        products[way] = join(products[way], product[way]);
      }
    }
    for (; i + V::kBlock <= size; i += V::kBlock) add(i, Full{}, squares[0], products[0]);
    if (i < size) add(i, Part{static_cast<int>(size - i)}, squares[0], products[0]);
    const Pair square = join(squares[0], squares[1]), product = join(products[0], products[1]);
    return {V::sum(square.a + square.b), V::sum(product.a + product.b)};
  }

  // gradient <- the sum of num_parts arranged sums, each `stride` behind the one before; in the arrangement of X.
  template <class X, class W>
  static void add_up(const float* parts, int64_t num_parts, int64_t stride, int64_t size, W* gradient) {
    for_each_block<V>(size, [=](int64_t i, auto part) {
      Pair sum = V::load(parts + i, Full{});
      for (int64_t k = 1; k < num_parts; ++k) {
        const Pair v = V::load(parts + k * stride + i, Full{});
        sum = {sum.a + v.a, sum.b + v.b};
      }
      store_arranged<V, X>(gradient + i, sum, part);
    });
  }

  static void sum_of_parts(Dtype rows, const float* parts, int64_t num_parts, int64_t stride, int64_t size,
                           Gradient gradient) {
    with_dtype(rows, [&](auto dtype) {
      using X = decltype(dtype);
      if (gradient.dtype == Dtype::float32)
        add_up<X>(parts, num_parts, stride, size, static_cast<float*>(gradient.data));
      else
        add_up<X>(parts, num_parts, stride, size, static_cast<X*>(gradient.data));
    });
  }
};

}  // namespace
}  // namespace serving_ops::cpu
