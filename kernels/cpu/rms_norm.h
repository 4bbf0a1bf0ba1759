// rms_norm and fused_add_rms_norm over rows: pass 1 sums the squares, pass 2 normalises. fused_add_rms_norm adds
// x + residual in both passes: a scratch row for the fp32 sums would cost more than the second addition. rms_norm_int8
// is either of them, and pass 3 quantizes; it has a scratch row anyway, and so keeps the sums.
#pragma once

#include "output.h"

namespace serving_ops::cpu {
namespace {

// What is done to n, the normalised fp32 value, before it is stored, given w, the weight's block. V is given at the use:
// see Normal in vec.h.
struct NoWeight {
  template <class V, class Size>
  typename V::Pair load(int64_t, Size) const {
    return typename V::Pair{};
  }
  template <class V>
  typename V::Pair apply(typename V::Pair n, typename V::Pair) const {
    return n;
  }
};

// A weight in x's dtype: n is rounded to that dtype first.
template <class X>
struct RoundedWeight {
  const X* weight;
  template <class V, class Size>
  typename V::Pair load(int64_t i, Size part) const {
    return V::load(weight + i, part);
  }
  template <class V>
  typename V::Pair apply(typename V::Pair n, typename V::Pair w) const {
    return V::rounded(n, X{}) * w;
  }
};

// n * (weight + offset), all in fp32.
template <class X, class W>
struct OffsetWeight {
  const W* weight;
  float offset;
  template <class V, class Size>
  typename V::Pair load(int64_t i, Size part) const {
    return load_param<V, X>(weight + i, part) + offset;
  }
  template <class V>
  typename V::Pair apply(typename V::Pair n, typename V::Pair w) const {
    return n * w;
  }
};

// Whether rounding to X flushes subnormals, unless it is checked.
template <class V, class X>
constexpr bool kFlushes = __is_same(X, bf16) && !__is_same(V, typename V::Normal);

// f(weight) with what is done with it; without `rounds`, all in fp32.
template <class X, bool rounds = true, class F>
inline void with_weight(const NormSpec& spec, F f) {
  const void* weight = spec.weight.data;
  if (weight == nullptr) return f(NoWeight{});
  if constexpr (!__is_same(X, float)) {
    if (spec.weight.dtype != Dtype::float32) {
      const X* same = static_cast<const X*>(weight);
      if constexpr (rounds)
        if (spec.weight_offset == 0.0f) return f(RoundedWeight<X>{same});
      return f(OffsetWeight<X, X>{same, spec.weight_offset});
    }
  }
  f(OffsetWeight<X, float>{static_cast<const float*>(weight), spec.weight_offset});
}

// Pass 1 over a few rows, row m being load(m, i, part): what each is multiplied by. Returns whether a row multiplied by
// it has no subnormal, and none when it is weighed, unless a weight is below 2^-63; asked for where rounding flushes them.
template <class V, class X, class Count, class Load>
inline bool find_scales(const NormSpec& spec, Count count, Load load, float (&scales)[kRowsAtOnce]) {
  constexpr float kNormalSum = 0x1p-126f, kLargeEnough = 0x1p-62f;
  const double inverse_size = 1.0 / static_cast<double>(spec.size);
  RowSums sums[kRowsAtOnce];
  for (int m = 0; m < count; ++m)
    sums[m] = sum_row<V, kFlushes<V, X>>(spec.size, [=](int64_t i, auto part) { return load(m, i, part); });
  for (int m = 0; m < count; ++m) scales[m] = inverse_rms(sums[m].squares, inverse_size, spec.eps);
  bool normal = true;
  for (int m = 0; m < count; ++m)
    normal &= sums[m].smallest >= kNormalSum && sums[m].smallest * scales[m] >= kLargeEnough;
  return normal;
}

template <class V>
struct RmsNorm {
  using Pair = typename V::Pair;

  // A few rows: row m is load(m, i, part) in pass 1, and again(m, i, part) in pass 2, where keep(rounding, m, i, s, part)
  // stores what else is wanted of it, and asks for what comes next.
  template <class X, class Weight, class Output, class Count, class Load, class Again, class Keep>
  static void few_rows(const NormSpec& spec, Weight weight, Output output, Count count, Load load, Again again,
                       Keep keep) {
    float scales[kRowsAtOnce];
    const bool normal = find_scales<V, X>(spec, count, load, scales);
    const auto normalise = [&](auto rounding) {
      using Rounding = decltype(rounding);
      for_each_block<V>(spec.size, [&](int64_t i, auto part) {
        const Pair w = weight.template load<Rounding>(i, part);
        for (int m = 0; m < count; ++m) {
          const Pair s = again(m, i, part);
          keep(rounding, m, i, s, part);
          output.template write<Rounding>(m, i, weight.template apply<Rounding>(s * scales[m], w), part);
        }
      });
    };
    if (kFlushes<V, X> && !normal) normalise(V{});
    else normalise(typename V::Normal{});
    output.end(count, spec.size);
  }

  // f(load, keep, first, count) for a few rows, until num_rows are done.
  template <class X, class F>
  static void rows(const NormSpec& spec, const NormRows& of, int64_t num_rows, F f) {
    for_each_few_rows(num_rows, spec.size, [&](int64_t first, auto count) {
      const FewRows<V, X> x(of.x, first, count);
      const auto load = [=](int m, int64_t i, auto part) { return x.load(m, i, part); };
      const auto keep = [=](auto, int m, int64_t i, Pair, auto) { x.fetch(m, i); };
      f(load, keep, first, count);
    });
  }

  // The same for the sums of x and residual, which become the residual. R: X, or fp32.
  template <class X, class R, class F>
  static void added_rows(const NormSpec& spec, const NormRows& of, int64_t num_rows, F f) {
    for_each_few_rows(num_rows, spec.size, [&](int64_t first, auto count) {
      const FewRows<V, X> x(of.x, first, count);
      const FewRows<V, R> residual(of.second, first, count);
      const auto added = [=](int m, int64_t i, auto part) {
        return x.load(m, i, part) + load_param<V, X>(residual.at(m, i), part);
      };
      const auto keep = [=](auto rounding, int m, int64_t i, Pair s, auto part) {
        x.template fetch<true>(m, i);
        residual.template fetch<true>(m, i);
        store_arranged<decltype(rounding), X>(residual.at(m, i), s, part);
      };
      f(added, keep, first, count);
    });
  }

  // f(X{}, weight) with the dtype of the rows and what is done with the weight.
  template <class F>
  static void with_types(const NormSpec& spec, F f) {
    with_dtype(spec.dtype, [&](auto x) { with_weight<decltype(x)>(spec, [&](auto weight) { f(x, weight); }); });
  }

  static void rms_norm(const NormSpec& spec, const NormRows& of, int64_t num_rows) {
    with_types(spec, [&](auto type, auto weight) {
      using X = decltype(type);
      const auto few = [&](auto load, auto keep, int64_t first, auto count) {
        few_rows<X>(spec, weight, Rounded<V, X>(of.out, first, count), count, load, load, keep);
      };
      if (of.second.data == nullptr) rows<X>(spec, of, num_rows, few);
      else if (spec.fp32_residual) added_rows<X, float>(spec, of, num_rows, few);
      else added_rows<X, X>(spec, of, num_rows, few);
    });
  }

  static void rms_norm_int8(const NormSpec& spec, const NormRows& of, int64_t num_rows) {
    with_types(spec, [&](auto type, auto weight) {
      using X = decltype(type);
      const int64_t stride = whole_blocks(spec.size);
      float* sums = of.scratch;
      if (of.second.data == nullptr)
        return rows<X>(spec, of, num_rows, [&](auto load, auto keep, int64_t first, auto count) {
          few_rows<X>(spec, weight, Int8<V, X>(of, stride, first, count), count, load, load, keep);
        });
      added_rows<X, X>(spec, of, num_rows, [&](auto load, auto keep, int64_t first, auto count) {
        const auto load_and_keep = [=](int m, int64_t i, auto part) {
          const Pair s = load(m, i, part);
          V::store(sums + m * stride + i, s, Full{});
          return s;
        };
        const auto again = [=](int m, int64_t i, auto) { return V::load(sums + m * stride + i, Full{}); };
        few_rows<X>(spec, weight, Int8<V, X>(of, stride, first, count), count, load_and_keep, again, keep);
      });
    });
  }
};

}  // namespace
}  // namespace serving_ops::cpu
