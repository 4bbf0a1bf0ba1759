// The gradients of rms_norm over rows, with s the row that was normed, n = s * rstd and dn = dout * (weight + offset):
// pass 1 sums s^2 and dn * s; pass 2 gives ds = rstd * (dn - n * mean(dn * n)) and adds dout * n to dweight.
#pragma once

#include "sums_over_rows.h"
#include "../rms_norm.h"

namespace serving_ops::cpu {
namespace {

template <class V>
struct RmsNormBackward {
  using Pair = typename V::Pair;
  using Vec = typename V::Vec;
  using Rest = OverRows<V>;

  template <class X>
  using Of = FewRows<V, X>;

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
        dout.fetch(m, i), s.fetch(m, i);
        const Pair d = dout.load(m, i, part), n = s.load(m, i, part) * rstd[m];
        const Vec factor = V::broadcast(of_n[m]);
        Pair gradient = fma<V>(n, {factor, factor}, weight.template apply<V>(d * rstd[m], w));
        if (more.data != nullptr) gradient = gradient + more.load(m, i, part);
        V::store(ds.at(m, i), gradient, part);
        sum = fma<V>(d, n, sum);
      }
      if (dweight != nullptr) V::store(dweight + i, sum, Full{});
    });
  }

  static void rms_norm_backward(const NormSpec& spec, const BackwardRows& of, int64_t num_rows) {
    const typename Rest::Sum sum(of.dweight, whole_blocks(spec.size));
    with_dtype(spec.dtype, [&](auto dtype) {
      using X = decltype(dtype);
      with_weight<X, false>(spec, [&](auto weight) {
        for_each_few_rows<kWideRowsAtOnce>(num_rows, spec.size, [&](int64_t first, auto count) {
          few_rows<X>(spec, weight, {of.dout, first, count}, {of.x, first, count}, {of.second, first, count},
                      {of.dx, first, count}, sum.run, count);
          Rest::end_run(sum, spec.size, first + count, num_rows);
        });
      });
    });
  }
};

}  // namespace
}  // namespace serving_ops::cpu
