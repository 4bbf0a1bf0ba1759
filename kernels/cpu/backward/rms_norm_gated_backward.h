// The gradients of rms_norm_gated over rows, group by group. With s the row that was normed, n = s * rstd, g = act(z) and
// slope = act'(z): behind the norm dy = dout * g and dz = dout * (n * weight + bias) * slope; before it s = x * g, so
// dx = ds * g and dz = ds * x * slope. ds is that of rms_norm_backward.h, for dn = dy * weight.
#pragma once

#include "sums_over_rows.h"
#include "../rms_norm_gated.h"

namespace serving_ops::cpu {
namespace {

template <class V>
struct RmsNormGatedBackward {
  using Pair = typename V::Pair;
  using Vec = typename V::Vec;
  using Rest = OverRows<V>;
  using Forward = RmsNormGated<V>;
  using Gate = typename Forward::Gate;

  // Gates and slopes, which both passes need, are kept from the first where they fit: an exponential and a division cost
  // more than all the rest. 32 KiB of stack.
  static constexpr int64_t kKept = kRowsAtOnce * kShortRow;

  struct GateAndSlope {
    Pair gate, slope;
  };
  struct Kept {
    float gate[kKept], slope[kKept];
  };

  static void gate_of(Vec z, bool silu, Vec& gate, Vec& slope) {
    // Not exp_for_16_bits: a gradient of weight in fp32 would show it, and it saves but a tenth to a fifth of the time.
    // By e^-|z| neither sigmoid(z) nor its difference from one is lost to cancellation.
    const Vec minus = -V::at_least(z, -z);
    const Vec e = exp<V>(minus);
    const Vec larger = V::broadcast(1.0f) / (e + 1.0f), smaller = e * larger;
    const Vec sigmoid = z < 0.0f ? smaller : larger, rest = z < 0.0f ? larger : smaller;
    gate = silu ? z * sigmoid : sigmoid;
    slope = silu ? V::fma(gate, rest, sigmoid) : sigmoid * rest;
  }

  // dweight and dbias are those of the group; null where there is none.
  template <Gate gate, class X, class Count>
  static void few_groups(const NormSpec& spec, int64_t start, const BackwardRows& of, float* dweight, float* dbias,
                         Kept& kept, int64_t first, Count count) {
    const auto few = [&](const Rows& rows) { return FewRows<V, X>(rows, first, count, start); };
    const auto douts = few(of.dout), xs = few(of.x), zs = few(of.second), dxs = few(of.dx), dzs = few(of.dsecond);
    const bool has_weight = spec.weight.data != nullptr, has_bias = spec.bias.data != nullptr;
    const int64_t kept_row = whole_blocks(spec.group_size);
    const bool keeps = count * kept_row <= kKept;
    const auto weight_at = [&](int64_t i, auto part) {
      return has_weight ? Forward::template param<X>(spec.weight, start + i, part) : Pair{};
    };
    const auto gated = [&](int m, int64_t i, auto part) {
      const Pair z = zs.load(m, i, part);
      GateAndSlope result;
      gate_of(z.a, spec.silu, result.gate.a, result.slope.a);
      gate_of(z.b, spec.silu, result.gate.b, result.slope.b);
      return result;
    };
    const double inverse_size = 1.0 / static_cast<double>(spec.group_size);
    typename Rest::Products sums[kRowsAtOnce];
    float rstd[kRowsAtOnce], mean[kRowsAtOnce];  // the latter of dn * n
    for (int m = 0; m < count; ++m)
      sums[m] = Rest::sum_row(spec.group_size, [&](int64_t i, auto part) {
        Pair s = xs.load(m, i, part), dn = douts.load(m, i, part);
        if constexpr (gate != Gate::none) {
          const GateAndSlope g = gated(m, i, part);
          if (keeps) {
            V::store(kept.gate + m * kept_row + i, g.gate, Full{});
            V::store(kept.slope + m * kept_row + i, g.slope, Full{});
          }
          if constexpr (gate == Gate::before_norm) s = s * g.gate;
          else dn = dn * g.gate;
        }
        if (has_weight) dn = dn * weight_at(i, part);
        return typename Rest::Operands{s, dn};
      });
    for (int m = 0; m < count; ++m) {
      rstd[m] = inverse_rms(sums[m].squares, inverse_size, spec.eps);
      mean[m] = static_cast<float>(sums[m].products * inverse_size) * rstd[m];
    }
    for_each_block<V>(spec.group_size, [&](int64_t i, auto part) {
      const Pair w = weight_at(i, part), b = has_bias ? Forward::template param<X>(spec.bias, start + i, part) : Pair{};
      Pair sum_weight = dweight == nullptr ? Pair{} : V::load(dweight + i, Full{});
      Pair sum_bias = dbias == nullptr ? Pair{} : V::load(dbias + i, Full{});
      for (int m = 0; m < count; ++m) {
        douts.fetch(m, i), xs.fetch(m, i), dxs.template fetch<true>(m, i);
        if constexpr (gate != Gate::none) zs.fetch(m, i), dzs.template fetch<true>(m, i);
        const Pair x = xs.load(m, i, part), dout = douts.load(m, i, part);
        GateAndSlope g{};
        if constexpr (gate != Gate::none) {
          if (keeps) g = {V::load(kept.gate + m * kept_row + i, Full{}), V::load(kept.slope + m * kept_row + i, Full{})};
          else g = gated(m, i, part);
        }
        const Pair n = (gate == Gate::before_norm ? x * g.gate : x) * rstd[m];
        const Pair dy = gate == Gate::after_norm ? dout * g.gate : dout, dn = has_weight ? dy * w : dy;
        const Pair ds = (dn - n * mean[m]) * rstd[m];
        if constexpr (gate == Gate::after_norm) {
          const Pair weighed = has_weight ? n * w : n, y = has_bias ? weighed + b : weighed;
          V::store(dzs.at(m, i), dout * y * g.slope, part);
        }
        if constexpr (gate == Gate::before_norm) {
          V::store(dxs.at(m, i), ds * g.gate, part);
          V::store(dzs.at(m, i), ds * x * g.slope, part);
        } else {
          V::store(dxs.at(m, i), ds, part);
        }
        sum_weight = fma<V>(dy, n, sum_weight);
        sum_bias = sum_bias + dy;
      }
      if (dweight != nullptr) V::store(dweight + i, sum_weight, Full{});
      if (dbias != nullptr) V::store(dbias + i, sum_bias, Full{});
    });
  }

  template <Gate gate, class X>
  static void rows(const NormSpec& spec, const BackwardRows& of, int64_t num_rows) {
    const int64_t padded = whole_blocks(spec.group_size), size = spec.size / spec.group_size * padded;
    const typename Rest::Sum weight(of.dweight, size), bias(of.dbias, size);
    Kept kept;
    for_each_few_rows<kWideRowsAtOnce>(num_rows, spec.group_size, [&](int64_t first, auto count) {
      for (int64_t start = 0, at = 0; start < spec.size; start += spec.group_size, at += padded)
        few_groups<gate, X>(spec, start, of, weight ? weight.run + at : nullptr, bias ? bias.run + at : nullptr, kept,
                            first, count);
      Rest::end_run(weight, size, first + count, num_rows);
      Rest::end_run(bias, size, first + count, num_rows);
    });
  }

  static void rms_norm_gated_backward(const NormSpec& spec, const BackwardRows& of, int64_t num_rows) {
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
