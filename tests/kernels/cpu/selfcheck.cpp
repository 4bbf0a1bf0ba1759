// Checks every kernel of every instruction set that this processor has against double precision, without torch:
// sizes, dtypes, parameters, tails, and that nothing beyond a row is written. Exits 1 where one is wrong.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <vector>

#include "../../../kernels/cpu/isa.h"

using namespace serving_ops;
using namespace serving_ops::cpu;

namespace {

constexpr int64_t kRows = 11;  // more than are worked on at once
constexpr int64_t kGap = 5;    // elements between the end of a row and the next
constexpr double kEps = 1e-6;
int failures = 0, checks = 0;

// Uniform in [-1, 1), the same on every machine.
double noise() {
  static uint64_t state = 1;
  state = state * 6364136223846793005u + 1442695040888963407u;
  return static_cast<double>(static_cast<int64_t>(state) >> 11) * 0x1p-52;
}

uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

// To the nearest of `digits` significant bits (8 bf16, 11 fp16), exponents no smaller than `least`.
double rounded(double value, Dtype dtype) {
  if (dtype == Dtype::float32) return static_cast<float>(value);
  if (value == 0.0 || !std::isfinite(value)) return value;
  const int digits = dtype == Dtype::bfloat16 ? 8 : 11, least = dtype == Dtype::bfloat16 ? -126 : -14;
  const int exponent = std::ilogb(value) < least ? least : std::ilogb(value);
  return std::ldexp(std::nearbyint(std::ldexp(value, digits - 1 - exponent)), exponent - digits + 1);
}

// A tensor of kRows strided rows, or of one parameter.
struct Buffer {
  Dtype dtype;
  int64_t stride;
  std::vector<float> wide;
  std::vector<uint16_t> narrow;

  Buffer(Dtype type, int64_t rows, int64_t size) : dtype(type), stride(size + kGap) {
    if (dtype == Dtype::float32) wide.resize(rows * stride);
    else narrow.resize(rows * stride);
  }
  void set(int64_t i, double value) {
    if (dtype == Dtype::float32) wide[i] = static_cast<float>(value);
    else if (dtype == Dtype::bfloat16) narrow[i] = bits_of(static_cast<float>(value)) >> 16;
    else narrow[i] = half(value);
  }
  double get(int64_t i) const {
    if (dtype == Dtype::float32) return wide[i];
    if (dtype == Dtype::bfloat16) {
      const uint32_t bits = static_cast<uint32_t>(narrow[i]) << 16;
      float value;
      std::memcpy(&value, &bits, 4);
      return value;
    }
    const int exponent = (narrow[i] >> 10) & 31, fraction = narrow[i] & 1023;
    if (exponent == 31) return fraction != 0 ? NAN : narrow[i] & 0x8000 ? -INFINITY : INFINITY;
    const double magnitude = exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
    return narrow[i] & 0x8000 ? -magnitude : magnitude;
  }
  void* data() { return dtype == Dtype::float32 ? static_cast<void*>(wide.data()) : narrow.data(); }
  Rows rows() { return {data(), stride}; }
  Param param() { return {data(), dtype}; }

  void fill(double scale) {
    const int64_t count = dtype == Dtype::float32 ? wide.size() : narrow.size();
    for (int64_t i = 0; i < count; ++i) set(i, rounded(noise() * scale, dtype));
  }

 private:
  static uint16_t half(double value) {  // value is an fp16 number already
    const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
    const double magnitude = std::fabs(value);
    if (!std::isfinite(value)) return std::isnan(value) ? 0x7e00 : sign | 0x7c00;
    if (magnitude < 0x1p-14) return sign | static_cast<uint16_t>(std::ldexp(magnitude, 24));
    const int exponent = std::ilogb(magnitude);
    return sign | ((exponent + 15) << 10) | (static_cast<uint16_t>(std::ldexp(magnitude, 10 - exponent)) & 1023);
  }
};

void report(bool right, const char* isa, const char* what, Dtype dtype, int64_t size, int64_t i, double got, double want) {
  ++checks;
  if (right) return;
  if (++failures <= 20)
    std::printf("%s %s dtype %d size %ld element %ld: %.9g, not %.9g\n", isa, what, static_cast<int>(dtype),
                static_cast<long>(size), static_cast<long>(i), got, want);
}

// `roundings` units in the last place of dtype, plus a few of fp32's.
bool close(double got, double want, Dtype dtype, double roundings) {
  const double unit = dtype == Dtype::float32 ? 0x1p-24 : dtype == Dtype::bfloat16 ? 0x1p-8 : 0x1p-11;
  const double floor = dtype == Dtype::float16 ? 0x1p-24 : 0x1p-133;
  return std::fabs(got - want) <= roundings * unit * std::fabs(want) + 8 * 0x1p-24 * std::fabs(want) + floor;
}

void check_gap(const Buffer& before, const Buffer& after, int64_t size, const char* isa, const char* what) {
  for (int64_t i = 0; i < kRows * before.stride; ++i)
    if (i % before.stride >= size)
      report(after.get(i) == before.get(i), isa, what, before.dtype, size, i, after.get(i), before.get(i));
}

void check_norms(const Kernels& kernels, Dtype dtype, int64_t size, Param weight, Buffer& weights, float offset,
                 double scale, Dtype of_residual) {
  Buffer x(dtype, kRows, size), residual(of_residual, kRows, size), out(dtype, kRows, size);
  x.fill(scale), residual.fill(scale), out.fill(1);
  const NormSpec spec{size, kEps, offset, dtype, weight, of_residual != dtype};
  const Buffer x0 = x, residual0 = residual, out0 = out;
  const bool rounds_twice = weight.data != nullptr && weight.dtype == dtype && offset == 0.0f;
  const auto check = [&](const Buffer& result, bool add, const char* what) {
    for (int64_t m = 0; m < kRows; ++m) {
      const auto s = [&](int64_t i) { return x0.get(m * x0.stride + i) + (add ? residual0.get(m * x0.stride + i) : 0.0); };
      double sum = 0;
      for (int64_t i = 0; i < size; ++i) sum += s(i) * s(i);
      const double inverse = 1.0 / std::sqrt(sum / size + kEps);
      for (int64_t i = 0; i < size; ++i) {
        const double factor = weight.data == nullptr ? 1.0 : weights.get(i) + offset;
        const double want = s(i) * inverse * factor, got = result.get(m * x0.stride + i);
        report(close(got, want, dtype, rounds_twice ? 2.2 : 1.01), kernels.isa, what, dtype, size, i, got, want);
      }
    }
    check_gap(&result == &x ? x0 : out0, result, size, kernels.isa, what);
  };
  kernels.rms_norm(spec, {x.rows(), {}, out.rows()}, kRows);
  check(out, false, "rms_norm");
  kernels.rms_norm(spec, {x.rows(), residual.rows(), x.rows()}, kRows);
  check(x, true, "fused_add_rms_norm");
  check_gap(residual0, residual, size, kernels.isa, "fused_add_rms_norm");
  for (int64_t i = 0; i < kRows * x0.stride; ++i)
    if (i % x0.stride < size) {
      const double want = rounded(static_cast<float>(x0.get(i) + residual0.get(i)), of_residual);
      report(residual.get(i) == want, kernels.isa, "residual", dtype, size, i, residual.get(i), want);
    }
}

// The bits of the norm, rounded, and then quantized in plain floats.
void check_int8(const Kernels& kernels, Dtype dtype, int64_t size, Param weight, float offset, double scale, bool add,
                bool with_normed) {
  Buffer x(dtype, kRows, size), residual(dtype, kRows, size), normed(dtype, kRows, size);
  x.fill(scale), residual.fill(scale), normed.fill(1);
  const int64_t stride = x.stride;
  for (int64_t i = 0; i < size; ++i) x.set(stride + i, 0.0), residual.set(stride + i, 0.0);
  if (scale == 1.0) x.set(2 * stride + size / 2, INFINITY), x.set(3 * stride + size / 2, NAN);
  const NormSpec spec{size, kEps, offset, dtype, weight};
  Buffer want = x, want_residual = residual;
  const Buffer normed0 = normed, residual0 = residual;
  kernels.rms_norm(spec, {want.rows(), add ? want_residual.rows() : Rows{}, want.rows()}, kRows);

  constexpr int8_t kUntouched = 99;
  std::vector<int8_t> out(kRows * stride, kUntouched);
  std::vector<float> scales(2 * kRows, 7.0f), scratch(scratch_elements(size));
  kernels.rms_norm_int8(spec,
                        {x.rows(), add ? residual.rows() : Rows{}, with_normed ? normed.rows() : Rows{},
                         {out.data(), stride}, {scales.data(), 2}, scratch.data()},
                        kRows);
  for (int64_t m = 0; m < kRows; ++m) {
    float amax = 0;
    for (int64_t i = 0; i < size; ++i) {
      const float y = std::fabs(static_cast<float>(want.get(m * stride + i)));
      if (!(y <= amax)) amax = y;
      if (std::isnan(y)) break;
    }
    const auto same = [](double a, double b) { return a == b || (std::isnan(a) && std::isnan(b)); };
    report(same(scales[2 * m], amax / 127.0f), kernels.isa, "scale", dtype, size, m, scales[2 * m], amax / 127.0f);
    report(scales[2 * m + 1] == 7.0f, kernels.isa, "scale's neighbour", dtype, size, m, scales[2 * m + 1], 7.0);
    const float inverse = amax == 0.0f ? 0.0f : 127.0f / amax;
    for (int64_t i = 0; i < stride; ++i) {
      const double y = want.get(m * stride + i), got = out[m * stride + i];
      const float scaled = std::nearbyint(static_cast<float>(y) * inverse);
      const double q = std::isnan(scaled) ? 0.0 : scaled < -128.0f ? -128.0 : scaled > 127.0f ? 127.0 : scaled;
      report(got == (i < size ? q : kUntouched), kernels.isa, "int8", dtype, size, i, got, q);
      if (i < size && with_normed)
        report(same(normed.get(m * stride + i), y), kernels.isa, "normed", dtype, size, i, normed.get(m * stride + i), y);
      if (i < size && add) {
        const double sum = want_residual.get(m * stride + i), in = residual.get(m * stride + i);
        report(same(in, sum), kernels.isa, "residual, int8", dtype, size, i, in, sum);
      }
    }
  }
  check_gap(normed0, normed, size, kernels.isa, "normed");
  check_gap(residual0, residual, size, kernels.isa, "residual, int8");
}

// The bits of the norm, and then the rotation in plain floats.
void check_rope(const Kernels& kernels, Dtype dtype, int64_t size, Param weight, float offset, int64_t rotary_dim,
                bool is_neox, Dtype table_dtype, bool with_sections) {
  constexpr int64_t kPositions = 3;
  Buffer heads(dtype, kRows, size), table(table_dtype, kPositions, rotary_dim);
  heads.fill(1), table.fill(1);
  const NormSpec norm{size, kEps, offset, dtype, weight};
  Buffer want = heads;
  if (weight.data != nullptr) kernels.rms_norm(norm, {heads.rows(), {}, want.rows()}, kRows);
  // One token has all rows but the last as q, and the last as k. With MRoPE it has three positions.
  const int32_t positions[3] = {2, 0, 1};
  std::vector<float> scratch(angles_elements(rotary_dim));
  const int64_t token = kRows * heads.stride, last = (kRows - 1) * heads.stride * element_bytes(dtype);
  const Heads q{heads.data(), kRows - 1, token, heads.stride, weight};
  const Heads k{static_cast<char*>(heads.data()) + last, 1, token, heads.stride, weight};
  const Buffer before = want;
  const int64_t third = rotary_dim / 6, section[3] = {rotary_dim / 2 - third - third / 2, third / 2, third};
  const auto axis_of = [&](int64_t pair) -> int64_t {
    if (!with_sections) return 0;
    if (!is_neox) return pair < section[0] ? 0 : pair < section[0] + section[1] ? 1 : 2;
    return pair % 3 != 0 && pair < 3 * section[pair % 3] ? pair % 3 : 0;
  };
  const RopeSpec spec{norm, rotary_dim, is_neox, table_dtype, with_sections, {section[0], section[1], section[2]}, is_neox};
  kernels.qk_norm_rope(spec, q, k, {table.data(), table.stride, {positions, false, 1, 1}, scratch.data()}, 0, 1);
  const int64_t pairs = rotary_dim / 2, step = is_neox ? pairs : 1;
  for (int64_t m = 0; m < kRows; ++m) {
    const auto at = [&](int64_t i) { return static_cast<float>(before.get(m * heads.stride + i)); };
    for (int64_t pair = 0; pair < pairs; ++pair) {
      const int64_t i = is_neox ? pair : 2 * pair, row = positions[axis_of(pair)] * table.stride;
      const float cos = table.get(row + pair), sin = table.get(row + pairs + pair), a = at(i), b = at(i + step);
      const float a_cos = a * cos, b_sin = b * sin, b_cos = b * cos, a_sin = a * sin;
      want.set(m * heads.stride + i, rounded(a_cos - b_sin, dtype));
      want.set(m * heads.stride + i + step, rounded(b_cos + a_sin, dtype));
    }
    for (int64_t i = 0; i < heads.stride; ++i) {
      const double got = heads.get(m * heads.stride + i), right = want.get(m * heads.stride + i);
      report(std::fabs(got - right) <= 1e-6 * (dtype == Dtype::float32), kernels.isa, "rope", dtype, size, i, got, right);
    }
  }
}

// Sums over rows in two parts, as two threads make them, and the gradient they add up to.
struct Sums {
  int64_t size, group_size;
  std::vector<float> parts;
  Sums(int64_t n, int64_t group)
      : size(n), group_size(group), parts(4 * (n / group) * whole_blocks(group) + 1, 0.0f) {
    parts.back() = 7.0f;
  }
  int64_t stride() const { return static_cast<int64_t>(parts.size() - 1) / 2; }
  float* part(int k) { return parts.data() + k * stride(); }

  void check(const Kernels& kernels, Dtype rows, Dtype dtype, const std::vector<double>& want,
             const std::vector<double>& magnitude, const char* what) {
    Buffer got(dtype, 1, size);
    got.fill(1);
    const Buffer before = got;
    const int64_t padded = whole_blocks(group_size), bytes = element_bytes(dtype);
    for (int64_t group = 0; group < size / group_size; ++group)
      kernels.sum_of_parts(rows, parts.data() + group * padded, 2, stride(), group_size,
                           {static_cast<char*>(got.data()) + group * group_size * bytes, dtype});
    for (int64_t i = 0; i < size; ++i) {
      const bool right = close(got.get(i), want[i], dtype, 1.01) ||
                         std::fabs(got.get(i) - want[i]) <= 32 * 0x1p-24 * magnitude[i];
      report(right, kernels.isa, what, rows, size, i, got.get(i), want[i]);
    }
    for (int64_t i = size; i < size + kGap; ++i)
      report(got.get(i) == before.get(i), kernels.isa, what, rows, size, i, got.get(i), before.get(i));
    report(parts.back() == 7.0f, kernels.isa, what, rows, size, size, parts.back(), 7.0);
  }
};

constexpr int64_t kFirstPart = 4;  // of kRows

Rows from(Buffer& buffer, int64_t row) {
  return {static_cast<char*>(buffer.data()) + row * buffer.stride * element_bytes(buffer.dtype), buffer.stride};
}

void check_backward(const Kernels& kernels, Dtype dtype, int64_t size, Param weight, Buffer& weights, float offset,
                    bool with_more) {
  Buffer dout(dtype, kRows, size), s(dtype, kRows, size), more(dtype, kRows, size), ds(dtype, kRows, size);
  dout.fill(1), s.fill(2), more.fill(1), ds.fill(1);
  const Buffer ds0 = ds;
  Sums sums(size, size);
  std::vector<double> want_dweight(size), magnitude(size);
  const NormSpec spec{size, kEps, offset, dtype, weight};
  const auto run = [&](int64_t first, int64_t last, float* dweight) {
    kernels.rms_norm_backward(spec,
                              {from(dout, first), from(s, first), with_more ? from(more, first) : Rows{},
                               from(ds, first), {}, dweight, nullptr},
                              last - first);
  };
  run(0, kFirstPart, sums.part(0)), run(kFirstPart, kRows, sums.part(1));
  for (int64_t m = 0; m < kRows; ++m) {
    const int64_t row = m * s.stride;
    const auto dn = [&](int64_t i) { return dout.get(row + i) * (weight.data == nullptr ? 1.0 : weights.get(i) + offset); };
    double squares = 0, products = 0, without_signs = 0;
    for (int64_t i = 0; i < size; ++i) {
      const double product = s.get(row + i) * dn(i);
      squares += s.get(row + i) * s.get(row + i), products += product, without_signs += std::fabs(product);
    }
    const double rstd = 1.0 / std::sqrt(squares / size + kEps), mean = products / size * rstd;
    for (int64_t i = 0; i < size; ++i) {
      const double n = s.get(row + i) * rstd, added = with_more ? more.get(row + i) : 0.0;
      const double want = rstd * (dn(i) - n * mean) + added, got = ds.get(row + i);
      // The terms may cancel: the error is then theirs.
      const double terms = rstd * (std::fabs(dn(i)) + std::fabs(n) * without_signs / size * rstd) + std::fabs(added);
      const bool right = close(got, want, dtype, 1.01) || std::fabs(got - want) <= 16 * 0x1p-24 * terms;
      report(right, kernels.isa, "ds", dtype, size, i, got, want);
      want_dweight[i] += dout.get(row + i) * n;
      magnitude[i] += std::fabs(dout.get(row + i) * n);
    }
  }
  sums.check(kernels, dtype, weight.data == nullptr ? Dtype::float32 : weight.dtype, want_dweight, magnitude, "dweight");
  check_gap(ds0, ds, size, kernels.isa, "ds");
}

void check_gated(const Kernels& kernels, Dtype dtype, int64_t size, Param weight, Buffer& weights, bool with_bias,
                 bool with_gate, bool before, bool silu, int64_t groups) {
  Buffer x(dtype, kRows, size), z(dtype, kRows, size), out(dtype, kRows, size), bias(Dtype::float32, 1, size);
  x.fill(2), z.fill(12), out.fill(1), bias.fill(1);
  const Buffer out0 = out;
  const Param of_bias = with_bias ? bias.param() : Param{};
  const NormSpec spec{size, kEps, 0.0f, dtype, weight, false, size / groups, of_bias, before, silu};
  kernels.rms_norm_gated(spec, {x.rows(), with_gate ? z.rows() : Rows{}, out.rows()}, kRows);
  for (int64_t m = 0; m < kRows; ++m) {
    const auto gate = [&](int64_t k) {
      const double v = z.get(m * z.stride + k);
      return !with_gate ? 1.0 : (silu ? v : 1.0) / (1.0 + std::exp(-v));
    };
    const auto s = [&](int64_t k) { return x.get(m * x.stride + k) * (before ? 1.0 : gate(k)); };
    double sum = 0;
    for (int64_t i = 0; i < size; ++i) {
      if (i % spec.group_size == 0) {
        sum = 0;
        for (int64_t k = i; k < i + spec.group_size; ++k) sum += s(k) * s(k);
      }
      const double n = s(i) / std::sqrt(sum / spec.group_size + kEps);
      const double product = weight.data == nullptr ? n : n * weights.get(i);
      const double want = (product + (with_bias ? bias.get(i) : 0.0)) * (before ? gate(i) : 1.0);
      const double got = out.get(m * out.stride + i);
      // A bias may cancel the product: the error is then the product's.
      const bool right = close(got, want, dtype, 1.01) || std::fabs(got - want) <= 16 * 0x1p-24 * std::fabs(product * gate(i)) + (with_bias ? 1e-6 : 0);
      report(right, kernels.isa, "rms_norm_gated", dtype, size, i, got, want);
    }
  }
  check_gap(out0, out, size, kernels.isa, "rms_norm_gated");
}

void check_gated_backward(const Kernels& kernels, Dtype dtype, int64_t size, Param weight, Buffer& weights, bool with_bias,
                          bool with_gate, bool before, bool silu, int64_t groups) {
  Buffer dout(dtype, kRows, size), x(dtype, kRows, size), z(dtype, kRows, size), bias(Dtype::float32, 1, size);
  Buffer dx(dtype, kRows, size), dz(dtype, kRows, size);
  dout.fill(1), x.fill(2), z.fill(12), bias.fill(1), dx.fill(1), dz.fill(1);
  const Buffer dx0 = dx, dz0 = dz;
  const int64_t group_size = size / groups;
  const Param of_bias = with_bias ? bias.param() : Param{};
  const NormSpec spec{size, kEps, 0.0f, dtype, weight, false, group_size, of_bias, before, silu};
  Sums dweight(size, group_size), dbias(size, group_size);
  const auto run = [&](int64_t first, int64_t last, int part) {
    kernels.rms_norm_gated_backward(spec,
                                    {from(dout, first), from(x, first), with_gate ? from(z, first) : Rows{},
                                     from(dx, first), with_gate ? from(dz, first) : Rows{}, dweight.part(part),
                                     with_bias ? dbias.part(part) : nullptr},
                                    last - first);
  };
  run(0, kFirstPart, 0), run(kFirstPart, kRows, 1);
  std::vector<double> want_dweight(size), of_dweight(size), want_dbias(size), of_dbias(size);
  for (int64_t m = 0; m < kRows; ++m) {
    const auto sigmoid = [&](int64_t k) { return 1.0 / (1.0 + std::exp(-z.get(m * z.stride + k))); };
    const auto gate = [&](int64_t k) { return !with_gate ? 1.0 : (silu ? z.get(m * z.stride + k) : 1.0) * sigmoid(k); };
    const auto slope = [&](int64_t k) {
      const double rest = 1.0 / (1.0 + std::exp(z.get(m * z.stride + k)));
      return silu ? sigmoid(k) + gate(k) * rest : sigmoid(k) * rest;
    };
    const auto s = [&](int64_t k) { return x.get(m * x.stride + k) * (before ? 1.0 : gate(k)); };
    const auto dy = [&](int64_t k) { return dout.get(m * dout.stride + k) * (before ? gate(k) : 1.0); };
    const auto dn = [&](int64_t k) { return dy(k) * (weight.data == nullptr ? 1.0 : weights.get(k)); };
    double rstd = 0, mean = 0, without_signs = 0;
    for (int64_t i = 0; i < size; ++i) {
      if (i % group_size == 0) {
        double squares = 0, products = 0;
        without_signs = 0;
        for (int64_t k = i; k < i + group_size; ++k)
          squares += s(k) * s(k), products += s(k) * dn(k), without_signs += std::fabs(s(k) * dn(k));
        rstd = 1.0 / std::sqrt(squares / group_size + kEps), mean = products / group_size * rstd;
      }
      const double n = s(i) * rstd, ds = rstd * (dn(i) - n * mean);
      const double terms = rstd * (std::fabs(dn(i)) + std::fabs(n) * without_signs / group_size * rstd);
      const auto check_one = [&](const Buffer& result, double want, double size_of_terms, const char* what) {
        const double got = result.get(m * result.stride + i);
        const bool right = close(got, want, dtype, 1.01) || std::fabs(got - want) <= 32 * 0x1p-24 * size_of_terms;
        report(right, kernels.isa, what, dtype, size, i, got, want);
      };
      const double factor = before ? 1.0 : gate(i);
      check_one(dx, ds * factor, terms * std::fabs(factor), "dx");
      if (with_gate) {
        const double weighed = weight.data == nullptr ? n : n * weights.get(i), added = with_bias ? bias.get(i) : 0.0;
        const double dout_i = dout.get(m * dout.stride + i), x_i = x.get(m * x.stride + i);
        // The slope is a difference, too, left of zero.
        const double of_slope = std::fabs(sigmoid(i)) + std::fabs(gate(i));
        if (before)
          check_one(dz, dout_i * (weighed + added) * slope(i),
                    std::fabs(dout_i) * (std::fabs(weighed) + std::fabs(added)) * of_slope, "dz");
        else
          check_one(dz, ds * x_i * slope(i), terms * std::fabs(x_i) * of_slope, "dz");
      }
      want_dweight[i] += dy(i) * n, of_dweight[i] += std::fabs(dy(i) * n);
      want_dbias[i] += dy(i), of_dbias[i] += std::fabs(dy(i));
    }
  }
  const Dtype of_weight = weight.data == nullptr ? Dtype::float32 : weight.dtype;
  dweight.check(kernels, dtype, of_weight, want_dweight, of_dweight, "dweight, gated");
  if (with_bias) dbias.check(kernels, dtype, Dtype::float32, want_dbias, of_dbias, "dbias");
  check_gap(dx0, dx, size, kernels.isa, "dx");
  check_gap(dz0, dz, size, kernels.isa, "dz");
}

void check(const Kernels& kernels, Dtype dtype, int64_t size) {
  for (int kind = 0; kind < 3; ++kind) {  // no weight, one of x's dtype, one of fp32
    Buffer weights(kind == 1 ? dtype : Dtype::float32, 1, size);
    weights.fill(1);
    const Param weight = kind == 0 ? Param{} : weights.param();
    for (float offset : {0.0f, 1.0f})
      for (double scale : {1.0, dtype == Dtype::float16 ? 1e-5 : 1e-39})  // the second are subnormals
        for (bool wide : {false, true})
          if (!wide || dtype != Dtype::float32)
            check_norms(kernels, dtype, size, weight, weights, kind == 0 ? 0.0f : offset, scale,
                        wide ? Dtype::float32 : dtype);
    for (int options = 0; options < 16; ++options)
      for (int64_t groups : {1, 4})
        if (size % groups == 0 && size <= 300)
          check_gated(kernels, dtype, size, weight, weights, options & 1, options & 2, options & 4, options & 8, groups);
  }
}

void check_int8_and_rope(const Kernels& kernels, Dtype dtype, int64_t size) {
  for (int kind = 0; kind < 3; ++kind) {  // as in check
    Buffer weights(kind == 1 ? dtype : Dtype::float32, 1, size);
    weights.fill(1);
    const Param weight = kind == 0 ? Param{} : weights.param();
    for (float offset : {0.0f, kind == 0 ? 0.0f : 1.0f})
      for (bool flag : {false, true}) {
        if (size > 1001 && (kind != 1 || offset != 0.0f)) continue;  // long under an emulator, and nothing new
        for (bool add : {false, true})
          for (double scale : {1.0, dtype == Dtype::float16 ? 1e-5 : 1e-39})
            check_int8(kernels, dtype, size, weight, offset, scale, add, flag);
        for (int64_t rotary_dim : {size / 2 * 2, size / 4 * 2})
          for (Dtype table : {dtype, Dtype::float32})
            for (bool with_sections : {false, true})
              if (size <= 300)
                check_rope(kernels, dtype, size, weight, offset, rotary_dim, flag, table, with_sections);
      }
  }
}

void check_gradients(const Kernels& kernels, Dtype dtype, int64_t size) {
  for (int kind = 0; kind < 3; ++kind) {  // as in check
    Buffer weights(kind == 1 ? dtype : Dtype::float32, 1, size);
    weights.fill(1);
    const Param weight = kind == 0 ? Param{} : weights.param();
    for (float offset : {0.0f, kind == 0 ? 0.0f : 1.0f})
      for (bool with_more : {false, true}) check_backward(kernels, dtype, size, weight, weights, offset, with_more);
    for (int options = 0; options < 16; ++options)
      for (int64_t groups : {1, 4})
        if (size % groups == 0 && (size <= 300 || options == 15))
          check_gated_backward(kernels, dtype, size, weight, weights, options & 1, options & 2, options & 4, options & 8,
                               groups);
  }
}

void check_everywhere(const char* what, void (*check_one)(const Kernels&, Dtype, int64_t)) {
  for (const Kernels* const* kernels = usable_kernels(); *kernels != nullptr; ++kernels) {
    for (Dtype dtype : {Dtype::float32, Dtype::bfloat16, Dtype::float16})
      for (int64_t size : {1, 3, 4, 8, 15, 16, 31, 32, 33, 64, 96, 127, 128, 129, 160, 257, 896, 1001, 4097, 9000})
        check_one(**kernels, dtype, size);
    std::printf("%s, %s: %d checks, %d failures so far\n", (*kernels)->isa, what, checks, failures);
  }
}

}  // namespace

int main() {
  check_everywhere("forward", check);
  check_everywhere("backward", check_gradients);
  check_everywhere("int8 and rotation", check_int8_and_rope);
  return failures == 0 ? 0 : 1;
}
