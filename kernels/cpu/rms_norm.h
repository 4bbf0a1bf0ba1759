// rms_norm and fused_add_rms_norm over rows: pass 1 sums the squares, pass 2 normalises. fused_add_rms_norm adds
// x + residual in both passes: a scratch row for the fp32 sums would cost more than the second addition.
#pragma once

#include "blocks.h"

namespace serving_ops::cpu {
namespace {

// What is done to n, the normalised fp32 value, before it is stored. V is given at the use: see Normal in vec.h.
struct NoWeight {
  template <class V, class Size>
  typename V::Pair apply(typename V::Pair n, int64_t, Size) const {
    return n;
  }
};

// A weight in x's dtype: n is rounded to that dtype first.
template <class X>
struct RoundedWeight {
  const X* weight;
  template <class V, class Size>
  typename V::Pair apply(typename V::Pair n, int64_t i, Size part) const {
    const auto w = V::load(weight + i, part), r = V::rounded(n, X{});
    return {r.a * w.a, r.b * w.b};
  }
};

// n * (weight + offset), all in fp32.
template <class X, class W>
struct OffsetWeight {
  const W* weight;
  float offset;
  template <class V, class Size>
  typename V::Pair apply(typename V::Pair n, int64_t i, Size part) const {
    const auto w = load_param<V, X>(weight + i, part);
    return {n.a * (w.a + offset), n.b * (w.b + offset)};
  }
};

// Whether rounding to X flushes subnormals, unless it is checked.
template <class V, class X>
constexpr bool kFlushes = __is_same(X, bf16) && !__is_same(V, typename V::Normal);

template <class X, class F>
inline void with_weight(const NormSpec& spec, F f) {
  const void* weight = spec.weight.data;
  if (weight == nullptr) return f(NoWeight{});
  if constexpr (!__is_same(X, float)) {
    if (spec.weight.dtype != Dtype::float32) {
      const X* same = static_cast<const X*>(weight);
      if (spec.weight_offset == 0.0f) return f(RoundedWeight<X>{same});
      return f(OffsetWeight<X, X>{same, spec.weight_offset});
    }
  }
  f(OffsetWeight<X, float>{static_cast<const float*>(weight), spec.weight_offset});
}

template <class V>
struct RmsNorm {
  using Pair = typename V::Pair;

  // The row is load(i, part); keep(i, s, part) stores what else is wanted of it.
  template <class X, class Weight, class Load, class Keep>
  static void row(const NormSpec& spec, double inverse_size, Weight weight, X* out, Load load, Keep keep) {
    constexpr bool careful = kFlushes<V, X>;
    const RowSums sums = sum_row<V, careful>(spec.size, load);
    const float scale = inverse_rms(sums.squares, inverse_size, spec.eps);
    const auto normalise = [=](auto rounding) {
      using Rounding = decltype(rounding);
      for_each_block<V>(spec.size, [=](int64_t i, auto part) {
        const Pair s = load(i, part), n = {s.a * scale, s.b * scale};
        keep(rounding, i, s, part);
        Rounding::store(out + i, weight.template apply<Rounding>(n, i, part), part);
      });
    };
    // n this large leaves no subnormal unless a weight is below 2^-63.
    constexpr float kNormalSum = 0x1p-126f, kLargeEnough = 0x1p-62f;
    const bool normal = sums.smallest >= kNormalSum && sums.smallest * scale >= kLargeEnough;
    if (careful && !normal) normalise(V{});
    else normalise(typename V::Normal{});
  }

  static void fused_add_rms_norm(const NormSpec& spec, Rows x_rows, Rows residual_rows, int64_t num_rows) {
    const double inverse_size = 1.0 / static_cast<double>(spec.size);
    with_dtype(spec.dtype, [&](auto dtype) {
      using X = decltype(dtype);
      with_weight<X>(spec, [&](auto weight) {
        for (int64_t m = 0; m < num_rows; ++m) {
          X* x = static_cast<X*>(x_rows.data) + m * x_rows.stride;
          X* residual = static_cast<X*>(residual_rows.data) + m * residual_rows.stride;
          const auto added = [=](int64_t i, auto part) {
            const Pair u = V::load(x + i, part), v = V::load(residual + i, part);
            return Pair{u.a + v.a, u.b + v.b};
          };
          const auto keep = [=](auto rounding, int64_t i, Pair s, auto part) { rounding.store(residual + i, s, part); };
          row(spec, inverse_size, weight, x, added, keep);
        }
      });
    });
  }

  static void rms_norm(const NormSpec& spec, Rows x_rows, Rows out_rows, int64_t num_rows) {
    const double inverse_size = 1.0 / static_cast<double>(spec.size);
    with_dtype(spec.dtype, [&](auto dtype) {
      using X = decltype(dtype);
      with_weight<X>(spec, [&](auto weight) {
        for (int64_t m = 0; m < num_rows; ++m) {
          const X* x = static_cast<const X*>(x_rows.data) + m * x_rows.stride;
          X* out = static_cast<X*>(out_rows.data) + m * out_rows.stride;
          const auto load = [=](int64_t i, auto part) { return V::load(x + i, part); };
          const auto keep = [](auto, int64_t, Pair, auto) {};
          row(spec, inverse_size, weight, out, load, keep);
        }
      });
    });
  }
};

}  // namespace
}  // namespace serving_ops::cpu
