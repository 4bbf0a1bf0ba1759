// The gradients of rms_norm over rows, with s the row that was normed, n = s * rstd and dn = dout * (weight + offset):
// pass 1 sums s^2 and dn * s; pass 2 gives ds = rstd * (dn - n * mean(dn * n)) and adds dout * n to dweight.
#pragma once

#include "rms_norm.h"

namespace serving_ops::cpu {
namespace {

template <class V>
struct RmsNormBackward {
  using Pair = typename V::Pair;

  // f(weight) with what multiplies dout, all in fp32.
  template <class X, class F>
  static void with_factor(const NormSpec& spec, F f) {
    const void* weight = spec.weight.data;
    if (weight == nullptr) return f(NoWeight{});
    if constexpr (!__is_same(X, float))
      if (spec.weight.dtype != Dtype::float32)
        return f(OffsetWeight<X, X>{static_cast<const X*>(weight), spec.weight_offset});
    f(OffsetWeight<X, float>{static_cast<const float*>(weight), spec.weight_offset});
  }

  // In partial sums of at most 32 additions a lane, as in sum_row of blocks.h.
  struct Sums {
    float squares, products;
  };
  struct Operands {
    Pair s, dn;
  };
  template <class Load>
  static Sums sum_row(int64_t size, Load load) {
    constexpr int64_t kRun = 32 * V::kBlock;
    Pair squares{}, products{};
    for (int64_t first = 0; first < size; first += kRun) {
      Pair square{}, product{};
      const auto add = [&](int64_t i, auto part) {
        const Operands v = load(first + i, part);
        square = {V::fma(v.s.a, v.s.a, square.a), V::fma(v.s.b, v.s.b, square.b)};
        product = {V::fma(v.s.a, v.dn.a, product.a), V::fma(v.s.b, v.dn.b, product.b)};
      };
      for_each_block<V>(size - first < kRun ? size - first : kRun, add);
      squares = {squares.a + square.a, squares.b + square.b};
      products = {products.a + product.a, products.b + product.b};
    }
    return {V::sum(squares.a + squares.b), V::sum(products.a + products.b)};
  }

  // dweight is arranged as pairs made of X are, until put_in_order; null where none is wanted.
  template <class X, class Weight>
  static void row(const NormSpec& spec, Weight weight, const X* dout, const X* s, const X* more, X* ds, float* dweight) {
    const double inverse_size = 1.0 / static_cast<double>(spec.size);
    const Sums sums = sum_row(spec.size, [=](int64_t i, auto part) {
      const Pair w = weight.template load<V>(i, part);
      return Operands{V::load(s + i, part), weight.template apply<V>(V::load(dout + i, part), w)};
    });
    const float rstd = inverse_rms(sums.squares, inverse_size, spec.eps);
    const float mean = static_cast<float>(sums.products * inverse_size) * rstd;  // of dn * n
    for_each_block<V>(spec.size, [=](int64_t i, auto part) {
      const Pair d = V::load(dout + i, part), v = V::load(s + i, part), n = {v.a * rstd, v.b * rstd};
      const Pair dn = weight.template apply<V>(d, weight.template load<V>(i, part));
      Pair gradient = {(dn.a - n.a * mean) * rstd, (dn.b - n.b * mean) * rstd};
      if (more != nullptr) {
        const Pair m = V::load(more + i, part);
        gradient = {gradient.a + m.a, gradient.b + m.b};
      }
      V::store(ds + i, gradient, part);
      if (dweight == nullptr) return;
      const Pair sum = V::load(dweight + i, Full{});
      V::store(dweight + i, Pair{V::fma(d.a, n.a, sum.a), V::fma(d.b, n.b, sum.b)}, Full{});
    });
  }

  template <class X>
  static void put_in_order(float* dweight, int64_t size) {
    if constexpr (__is_same(X, bf16)) {
      constexpr int kHalf = V::kBlock / 2;
      for (int64_t first = 0; first < size; first += V::kBlock) {
        float pair[V::kBlock];
        std::memcpy(pair, dweight + first, sizeof pair);
        for (int i = 0; i < kHalf; ++i) {
          dweight[first + 2 * i] = pair[i];
          dweight[first + 2 * i + 1] = pair[kHalf + i];
        }
      }
    }
  }

  // A long sum of rows in fp32 errs by as much as it has additions: every kRun rows go to the total as one.
  static constexpr int64_t kRun = 16;

  static void clear(float* sums, int64_t size) {
    for (int64_t i = 0; i < size; i += V::kBlock) V::store(sums + i, Pair{}, Full{});
  }
  static void move(float* from, float* to, int64_t size) {
    for (int64_t i = 0; i < size; i += V::kBlock) {
      const Pair a = V::load(from + i, Full{}), b = V::load(to + i, Full{});
      V::store(to + i, Pair{a.a + b.a, a.b + b.b}, Full{});
    }
    clear(from, size);
  }

  static void rms_norm_backward(const NormSpec& spec, Rows dout_rows, Rows s_rows, Rows more_rows, Rows ds_rows,
                                float* dweight, int64_t num_rows) {
    float* run = dweight == nullptr ? nullptr : dweight + whole_blocks(spec.size);
    if (run != nullptr) clear(dweight, spec.size), clear(run, spec.size);
    with_dtype(spec.dtype, [&](auto dtype) {
      using X = decltype(dtype);
      with_factor<X>(spec, [&](auto weight) {
        for (int64_t m = 0; m < num_rows; ++m) {
          const auto at = [m](Rows rows) { return static_cast<X*>(rows.data) + m * rows.stride; };
          const X* more = more_rows.data == nullptr ? nullptr : at(more_rows);
          row<X>(spec, weight, at(dout_rows), at(s_rows), more, at(ds_rows), run);
          if (run != nullptr && (m % kRun == kRun - 1 || m == num_rows - 1)) move(run, dweight, spec.size);
        }
      });
      if (dweight != nullptr) put_in_order<X>(dweight, spec.size);
    });
  }
};

}  // namespace
}  // namespace serving_ops::cpu
