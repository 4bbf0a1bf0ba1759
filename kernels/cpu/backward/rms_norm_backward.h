// The gradients of rms_norm over rows, with s the row that was normed, n = s * rstd and dn = dout * (weight + offset):
// pass 1 sums s^2 and dn * s; pass 2 gives ds = rstd * (dn - n * mean(dn * n)) and adds dout * n to dweight.
#pragma once

#include "../over_rows.h"
#include "../rms_norm.h"

namespace serving_ops::cpu {
namespace {

template <class V>
struct RmsNormBackward {
  using Pair = typename V::Pair;
  using Vec = typename V::Vec;
  using Rest = OverRows<V>;

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

  template <class X>
  using Of = typename Rest::template FewRows<X>;

  template <class X, class Weight, class Count>
  static void few_rows(const NormSpec& spec, Weight weight, Of<X> dout, Of<X> s, Of<X> more, Of<X> ds, float* dweight,
                       Count count) {
    const double inverse_size = 1.0 / static_cast<double>(spec.size);
    typename Rest::Products sums[kRowsAtOnce];
    float rstd[kRowsAtOnce], of_n[kRowsAtOnce];  // ds = dn * rstd + n * of_n
    for (int m = 0; m < count; ++m)
      sums[m] = Rest::sum_row(spec.size, [=](int64_t i, auto part) {
        const Pair w = weight.template load<V>(i, part);
        return typename Rest::Operands{s.load(m, i, part), weight.template apply<V>(dout.load(m, i, part), w)};
      });
    for (int m = 0; m < count; ++m) {
      rstd[m] = inverse_rms(sums[m].squares, inverse_size, spec.eps);
      of_n[m] = -static_cast<float>(sums[m].products * inverse_size) * rstd[m] * rstd[m];
    }
    for_each_block<V>(spec.size, [&](int64_t i, auto part) {
      const Pair w = weight.template load<V>(i, part);
      Pair sum = dweight == nullptr ? Pair{} : V::load(dweight + i, Full{});
      for (int m = 0; m < count; ++m) {
        dout.fetch(count + m, i), s.fetch(count + m, i);
        const Pair d = dout.load(m, i, part), v = s.load(m, i, part), n = {v.a * rstd[m], v.b * rstd[m]};
        const Pair dn = weight.template apply<V>({d.a * rstd[m], d.b * rstd[m]}, w);
        const Vec factor = V::broadcast(of_n[m]);
        Pair gradient = {V::fma(n.a, factor, dn.a), V::fma(n.b, factor, dn.b)};
        if (more.data != nullptr) {
          const Pair other = more.load(m, i, part);
          gradient = {gradient.a + other.a, gradient.b + other.b};
        }
        ds.store(m, i, gradient, part);
        sum = {V::fma(d.a, n.a, sum.a), V::fma(d.b, n.b, sum.b)};
      }
      if (dweight != nullptr) V::store(dweight + i, sum, Full{});
    });
  }

  static void rms_norm_backward(const NormSpec& spec, const BackwardRows& of, int64_t num_rows) {
    const typename Rest::Sum sum(of.dweight, whole_blocks(spec.size));
    with_dtype(spec.dtype, [&](auto dtype) {
      using X = decltype(dtype);
      with_factor<X>(spec, [&](auto weight) {
        const auto few = [&](int64_t first, auto count) {
          few_rows<X>(spec, weight, {of.dout, first}, {of.x, first}, {of.second, first}, {of.dx, first}, sum.run, count);
        };
        Rest::for_each_few(num_rows, spec.size, few, [&] { Rest::end_run(sum, spec.size); });
      });
    });
  }
};

}  // namespace
}  // namespace serving_ops::cpu
