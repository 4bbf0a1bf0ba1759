// qk_norm_rope over the heads of tokens: pass 1 sums the squares of a head, pass 2 normalises it, rounds it to its dtype,
// rotates it in fp32 and rounds it again.
#pragma once

#include "rms_norm.h"

namespace serving_ops::cpu {
namespace {

template <class V>
struct QkNormRope {
  using Pair = typename V::Pair;
  using Vec = typename V::Vec;

  // One token's angles in fp32: arranged as the heads' pairs are, or, for neighbours, in order.
  struct Rotation {
    const float *cos, *sin;
  };

  template <class X, class Table>
  static Rotation rotation(const RopeSpec& spec, const Table* row, float* scratch) {
    const int64_t pairs = spec.rotary_dim / 2;
    float *cos = scratch, *sin = scratch + whole_blocks(pairs);
    const auto arranged = [&](const Table* values, auto part) {
      if (spec.is_neox) return load_param<V, X>(values, part);
      const Pair v = V::load(values, part);
      return __is_same(Table, bf16) ? V::in_order(v) : v;
    };
    for_each_block<V>(pairs, [&](int64_t i, auto part) {
      V::store(cos + i, arranged(row + i, part), Full{});
      V::store(sin + i, arranged(row + pairs + i, part), Full{});
    });
    return {cos, sin};
  }

  // A token's row of the table. With MRoPE each pair has its angle from the row of one of three positions.
  template <class Table>
  static const Table* row_of(const RopeSpec& spec, const Angles& angles, int64_t token) {
    const Table* rows[3];
    for (int64_t axis = 0; axis < (spec.has_sections ? 3 : 1); ++axis)
      rows[axis] = static_cast<const Table*>(angles.table) + angles.positions(token, axis) * angles.row_stride;
    if (!spec.has_sections) return rows[0];
    const int64_t pairs = spec.rotary_dim / 2;
    Table* row = reinterpret_cast<Table*>(angles.scratch + 2 * whole_blocks(pairs));
    for (int64_t pair = 0; pair < pairs; ++pair) {
      const Table* of_pair = rows[spec.axis_of(pair)];
      row[pair] = of_pair[pair];
      row[pairs + pair] = of_pair[pairs + pair];
    }
    return row;
  }

  // A few heads. normed(rounding, m, i, part) is a block as it is rotated, and `rest` whether elements beyond the
  // rotated ones change.
  template <class X, class Count, class Normed>
  static void rotate(const RopeSpec& spec, X* heads, int64_t stride, Count count, const Rotation& angles, bool rest,
                     Normed normed) {
    const int64_t pairs = spec.rotary_dim / 2;
    if (spec.is_neox) {
      for_each_block<V>(pairs, [&](int64_t i, auto part) {
        const Pair cos = V::load(angles.cos + i, Full{}), sin = V::load(angles.sin + i, Full{});
        for (int m = 0; m < count; ++m) {
          X* head = heads + m * stride;
          const Pair a = normed(m, i, part), b = normed(m, pairs + i, part);
          V::store(head + i, a * cos - b * sin, part);
          V::store(head + pairs + i, b * cos + a * sin, part);
        }
      });
    } else {
      constexpr bool apart = __is_same(X, bf16);  // even and odd elements already
      for_each_block<V>(spec.rotary_dim, [&](int64_t i, auto part) {
        const Vec cos = V::template read<Vec>(angles.cos + i / 2), sin = V::template read<Vec>(angles.sin + i / 2);
        for (int m = 0; m < count; ++m) {
          const Pair n = normed(m, i, part), v = apart ? n : V::even_odd(n);
          const Pair turned = {v.a * cos - v.b * sin, v.b * cos + v.a * sin};
          V::store(heads + m * stride + i, apart ? turned : V::in_order(turned), part);
        }
      });
    }
    if (!rest) return;
    for_each_block<V>(spec.norm.size - spec.rotary_dim, [&](int64_t i, auto part) {
      for (int m = 0; m < count; ++m)
        V::store(heads + m * stride + spec.rotary_dim + i, normed(m, spec.rotary_dim + i, part), part);
    });
  }

  template <class X, class Weight, class Count>
  static void norm_and_rotate(const RopeSpec& spec, Weight weight, X* heads, int64_t stride, Count count,
                              const Rotation& angles) {
    const auto load = [=](int m, int64_t i, auto part) { return V::load(heads + m * stride + i, part); };
    float scales[kRowsAtOnce];
    const bool normal = find_scales<V, X>(spec.norm, count, load, scales);
    const auto run = [&](auto rounding) {
      using Rounding = decltype(rounding);
      rotate(spec, heads, stride, count, angles, true, [&](int m, int64_t i, auto part) {
        const Pair n = load(m, i, part) * scales[m];
        return Rounding::rounded(weight.template apply<Rounding>(n, weight.template load<Rounding>(i, part)), X{});
      });
    };
    if (kFlushes<V, X> && !normal) run(V{});
    else run(typename V::Normal{});
  }

  template <class X>
  static void token(const RopeSpec& spec, const Heads& of, int64_t token, const Rotation& angles) {
    X* heads = static_cast<X*>(of.data) + token * of.token_stride;
    const int64_t stride = of.head_stride;
    for_each_few_rows(of.count, spec.norm.size, [&](int64_t first, auto count) {
      X* few = heads + first * stride;
      if (of.weight.data == nullptr)
        return rotate(spec, few, stride, count, angles, false,
                      [=](int m, int64_t i, auto part) { return V::load(few + m * stride + i, part); });
      NormSpec norm = spec.norm;
      norm.weight = of.weight;
      with_weight<X>(norm, [&](auto weight) { norm_and_rotate(spec, weight, few, stride, count, angles); });
    });
  }

  static void qk_norm_rope(const RopeSpec& spec, const Heads& q, const Heads& k, const Angles& angles, int64_t first,
                           int64_t last) {
    with_dtype(spec.norm.dtype, [&](auto type) {
      using X = decltype(type);
      for (int64_t m = first; m < last; ++m) {
        const Rotation rotated = spec.table_dtype == Dtype::float32
                                     ? rotation<X>(spec, row_of<float>(spec, angles, m), angles.scratch)
                                     : rotation<X>(spec, row_of<X>(spec, angles, m), angles.scratch);
        token<X>(spec, q, m, rotated);
        token<X>(spec, k, m, rotated);
      }
    });
  }
};

}  // namespace
}  // namespace serving_ops::cpu
