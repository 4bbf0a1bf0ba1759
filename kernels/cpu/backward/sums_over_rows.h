// What the gradients share: a row's sums, and sums over rows, such as the gradients of weight and bias.
#pragma once

#include "../blocks.h"

namespace serving_ops::cpu {
namespace {

// Rows per pass over the sums over rows. Processing k rows together reads and writes these sums once per k rows; k is
// small for wide rows, so that they are still in the cache when their own sums are known. 512 x 1024 and 4096 x 2048,
// bf16, one core of Zen 5: 63 and 1880 us with k = 2, 67 and 2400 us with 4, 70 and 2140 us with 1.
constexpr int kWideRowsAtOnce = 2;

template <class V>
struct OverRows {
  using Pair = typename V::Pair;

  // A sum in fp32 errs by as much as it has additions, so the rows are added up in two steps: a run of kRun rows, then all
  // runs. Both are arranged as pairs made of the rows' dtype are.
  static constexpr int64_t kRun = 16;
  struct Sum {
    float *total, *run;
    Sum() : total(nullptr), run(nullptr) {}
    Sum(float* data, int64_t size) : total(data), run(data == nullptr ? nullptr : data + size) {}
    explicit operator bool() const { return run != nullptr; }
  };

  // After `done` rows. So many are worked on at once that each run ends there.
  static void end_run(Sum sum, int64_t size, int64_t done, int64_t num_rows) {
    static_assert(kRun % kRowsAtOnce == 0 && kRun % kWideRowsAtOnce == 0);
    if (!sum || (done % kRun != 0 && done != num_rows)) return;
    for (int64_t i = 0; i < size; i += V::kBlock) {
      V::store(sum.total + i, V::load(sum.run + i, Full{}) + V::load(sum.total + i, Full{}), Full{});
      V::store(sum.run + i, Pair{}, Full{});
    }
  }

  // For s, what is normed, and dn, the gradient of the norm: the sums of s^2 and of s * dn, whose block at i is
  // load(i, part).
  struct Operands {
    Pair s, dn;
  };
  struct Products {
    float squares, products;
  };
  template <class Load>
  static Products sum_row(int64_t size, Load load) {
    struct Sum {
      Pair squares, products;
      Sum operator+(Sum other) const { return {squares + other.squares, products + other.products}; }
    };
    Sum total[2] = {};  // of two pairs each: hides the latency of fma
    add_up_row<V>(size, total, [&](int64_t i, auto part, Sum& sum, int) {
      const Operands v = load(i, part);
      sum = {fma<V>(v.s, v.s, sum.squares), fma<V>(v.s, v.dn, sum.products)};
    });
    const Sum all = total[0] + total[1];
    return {V::sum(all.squares.a + all.squares.b), V::sum(all.products.a + all.products.b)};
  }

  // gradient <- the sum of num_parts arranged sums, each `stride` behind the one before; in the arrangement of X.
  template <class X, class W>
  static void add_up(const float* parts, int64_t num_parts, int64_t stride, int64_t size, W* gradient) {
    for_each_block<V>(size, [=](int64_t i, auto part) {
      Pair sum = V::load(parts + i, Full{});
      for (int64_t k = 1; k < num_parts; ++k) sum = sum + V::load(parts + k * stride + i, Full{});
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
