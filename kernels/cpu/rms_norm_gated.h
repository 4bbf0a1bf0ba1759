// rms_norm_gated over rows: pass 1 sums the squares of each group, pass 2 normalises, weighs and gates, all in fp32 with
// one rounding at the end. A gate that comes before the norm is computed in both passes.
#pragma once

#include "blocks.h"

namespace serving_ops::cpu {
namespace {

// e^x within 1 ulp: x = n ln 2 + r, a polynomial in r (minimax over |r| <= ln 2 / 2, relative error 4e-9), times 2^n.
template <class V, class Vec = typename V::Vec>
inline Vec exp(Vec x) {
  x = V::at_most(V::at_least(x, V::broadcast(-104.0f)), V::broadcast(89.0f));  // beyond: 0 and infinity
  const Vec n = V::round_to_integer(x * 0x1.715476p+0f);
  Vec r = V::fma(n, V::broadcast(-0x1.63p-1f), x);      // ln 2 in two parts; n times the first is exact
  r = V::fma(n, V::broadcast(0x1.bd0106p-13f), r);
  Vec p = V::broadcast(0x1.6a23cep-10f);
  p = V::fma(p, r, V::broadcast(0x1.123a2p-7f));
  p = V::fma(p, r, V::broadcast(0x1.5558f2p-5f));
  p = V::fma(p, r, V::broadcast(0x1.555492p-3f));
  p = V::fma(p, r, V::broadcast(0x1.fffffcp-2f));
  p = V::fma(p, r * r, r) + 1.0f;
  return V::scale(p, n);
}

// e^x for results of 16 bits, where the instruction set makes it cheaper: 2^t by t's whole and fraction, with a polynomial
// (minimax over [0, 1], relative error 3e-6). Infinities and NaN need no care.
template <class V, class Vec = typename V::Vec>
inline Vec exp_for_16_bits(Vec x) {
  if constexpr (!V::kScalesByFloor) return exp<V>(x);
  const Vec t = x * 0x1.715476p+0f, f = V::fraction(t);
  Vec p = V::broadcast(0x1.bb7cecp-7f);
  p = V::fma(p, f, V::broadcast(0x1.aa1402p-5f));
  p = V::fma(p, f, V::broadcast(0x1.ee7982p-3f));
  p = V::fma(p, f, V::broadcast(0x1.62d166p-1f));
  p = V::fma(p, f, V::broadcast(0x1.00002cp+0f));
  return V::scale(p, t);
}

template <class V>
struct RmsNormGated {
  using Pair = typename V::Pair;
  using Vec = typename V::Vec;
  enum class Gate { none, before_norm, after_norm };

  template <class X>
  static Vec activation(Vec z, bool silu) {
    const Vec denominator = (sizeof(X) == 2 ? exp_for_16_bits<V>(-z) : exp<V>(-z)) + 1.0f;
    return (silu ? z : V::broadcast(1.0f)) / denominator;  // by a reciprocal and a Newton step it is slower on Zen 5
  }

  template <class X, class Size>
  static Pair param(const Param& p, int64_t i, Size part) {
    if (p.dtype == Dtype::float32) return load_param<V, X>(static_cast<const float*>(p.data) + i, part);
    return V::load(static_cast<const X*>(p.data) + i, part);
  }

  // The group that begins at `start`, of a few rows.
  template <Gate gate, class X, class Count>
  static void few_groups(const NormSpec& spec, int64_t start, const NormRows& of, int64_t first, Count count) {
    const FewRows<V, X> x(of.x, first, count, start), z(of.second, first, count, start), out(of.out, first, count, start);
    const auto gated = [&](Pair v, int m, int64_t i, auto part) {
      const Pair g = z.load(m, i, part);
      return Pair{v.a * activation<X>(g.a, spec.silu), v.b * activation<X>(g.b, spec.silu)};
    };
    const auto load = [&](int m, int64_t i, auto part) {
      const Pair v = x.load(m, i, part);
      if constexpr (gate == Gate::before_norm) return gated(v, m, i, part);
      return v;
    };
    const double inverse_size = 1.0 / static_cast<double>(spec.group_size);
    float scales[kRowsAtOnce];
    for (int m = 0; m < count; ++m)
      scales[m] = sum_row<V, false>(spec.group_size, [&](int64_t i, auto part) { return load(m, i, part); }).squares;
    for (int m = 0; m < count; ++m) scales[m] = inverse_rms(scales[m], inverse_size, spec.eps);
    const bool has_weight = spec.weight.data != nullptr, has_bias = spec.bias.data != nullptr;
    for_each_block<V>(spec.group_size, [&](int64_t i, auto part) {
      const Pair w = has_weight ? param<X>(spec.weight, start + i, part) : Pair{};
      const Pair b = has_bias ? param<X>(spec.bias, start + i, part) : Pair{};
      for (int m = 0; m < count; ++m) {
        x.fetch(m, i);
        if constexpr (gate != Gate::none) z.fetch(m, i);
        out.template fetch<true>(m, i);
        Pair y = load(m, i, part) * scales[m];
        if (has_weight) y = y * w;
        if (has_bias) y = y + b;
        if constexpr (gate == Gate::after_norm) y = gated(y, m, i, part);
        V::store(out.at(m, i), y, part);
      }
    });
  }

  template <Gate gate, class X>
  static void rows(const NormSpec& spec, const NormRows& of, int64_t num_rows) {
    for_each_few_rows(num_rows, spec.group_size, [&](int64_t first, auto count) {
      for (int64_t start = 0; start < spec.size; start += spec.group_size)
        few_groups<gate, X>(spec, start, of, first, count);
    });
  }

  static void rms_norm_gated(const NormSpec& spec, const NormRows& of, int64_t num_rows) {
    with_dtype(spec.dtype, [&](auto dtype) {
      using X = decltype(dtype);
      if (of.second.data == nullptr) return rows<Gate::none, X>(spec, of, num_rows);
      if (spec.norm_before_gate) return rows<Gate::after_norm, X>(spec, of, num_rows);
      rows<Gate::before_norm, X>(spec, of, num_rows);
    });
  }
};

}  // namespace
}  // namespace serving_ops::cpu
