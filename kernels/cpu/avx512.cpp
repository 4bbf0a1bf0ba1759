// AVX-512 with BF16: 32 elements a block, tails by mask.
#include <immintrin.h>

#include "kernel_table.h"

namespace serving_ops::cpu {
namespace {

// The instruction that rounds to bf16 flushes subnormals to zero. Checked, a block that has one takes the integer way.
template <bool checked>
struct Avx512 : Generic<Avx512<checked>, 16> {
  using Base = Generic<Avx512<checked>, 16>;
  using Vec = typename Base::Vec;
  using Pair = typename Base::Pair;
  using Bits = typename Base::Bits;
  using Signed = typename Base::Signed;
  using Normal = Avx512<false>;

  static Vec fma(Vec x, Vec y, Vec z) { return _mm512_fmadd_ps(x, y, z); }
  // The smaller magnitude of each lane, where y is a zero x's.
  static Vec smaller_nonzero(Vec x, Vec y) {
    const __mmask16 nonzero = _mm512_test_epi32_mask(_mm512_castps_si512(y), _mm512_set1_epi32(0x7fffffff));
    constexpr int kSmallerMagnitude = 0x0a;
    return _mm512_mask_range_ps(x, nonzero, x, y, kSmallerMagnitude);
  }
  static float smallest(Vec v) { return _mm512_reduce_min_ps(v); }
  static float sum(Vec v) { return _mm512_reduce_add_ps(v); }
  static Vec scale(Vec x, Vec n) { return _mm512_scalef_ps(x, n); }
  static constexpr bool kScalesByFloor = true;
  static Vec fraction(Vec x) { return _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); }
  static Vec round_to_integer(Vec x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static Bits to_integer(Vec x) { return bit_cast<Bits>(_mm512_cvtps_epi32(x)); }  // a NaN's lowest byte is 0
  // min and max give their second operand where either is a NaN.
  static Vec at_least(Vec x, Vec low) { return _mm512_max_ps(low, x); }
  static Vec at_most(Vec x, Vec high) { return _mm512_min_ps(high, x); }

  static uint32_t mask(Part part) { return (1u << part.count) - 1; }

  static Pair expand(__m512i both, bf16) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(both, 16)),
            _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32(0xffff0000)))};
  }
  static bool any_subnormal(Pair v) {
    constexpr int kSubnormal = 0x20;
    return _mm512_fpclass_ps_mask(v.a, kSubnormal) | _mm512_fpclass_ps_mask(v.b, kSubnormal);
  }
  static __m512i pack(Pair v, bf16) {
    if (checked && __builtin_expect(any_subnormal(v), 0)) return bit_cast<__m512i>(Base::pack_bf16(v));
    const __m512i in_order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                              21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return _mm512_permutexvar_epi16(in_order, bit_cast<__m512i>(_mm512_cvtne2ps_pbh(v.b, v.a)));
  }

  static Pair expand(__m512i h, fp16) {
    return {_mm512_cvtph_ps(_mm512_castsi512_si256(h)), _mm512_cvtph_ps(_mm512_extracti64x4_epi64(h, 1))};
  }
  static __m512i pack(Pair v, fp16) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtps_ph(v.a, _MM_FROUND_TO_NEAREST_INT)),
                              _mm512_cvtps_ph(v.b, _MM_FROUND_TO_NEAREST_INT), 1);
  }

  static Pair load(const float* p, Full) { return {_mm512_loadu_ps(p), _mm512_loadu_ps(p + 16)}; }
  static Pair load(const float* p, Part part) {
    const uint32_t m = mask(part);
    return {_mm512_maskz_loadu_ps(m & 0xffff, p), _mm512_maskz_loadu_ps(m >> 16, p + 16)};
  }
  static void store(float* p, Pair v, Full) {
    _mm512_storeu_ps(p, v.a);
    _mm512_storeu_ps(p + 16, v.b);
  }
  static void store(float* p, Pair v, Part part) {
    const uint32_t m = mask(part);
    _mm512_mask_storeu_ps(p, m & 0xffff, v.a);
    _mm512_mask_storeu_ps(p + 16, m >> 16, v.b);
  }

  template <class H>
  static Pair load(const H* p, Full) { return expand(_mm512_loadu_si512(p), H{}); }
  template <class H>
  static Pair load(const H* p, Part part) { return expand(_mm512_maskz_loadu_epi16(mask(part), p), H{}); }
  template <class H>
  static void store(H* p, Pair v, Full) { _mm512_storeu_si512(p, pack(v, H{})); }
  template <class H>
  static void store(H* p, Pair v, Part part) { _mm512_mask_storeu_epi16(p, mask(part), pack(v, H{})); }
  static Pair rounded(Pair v, float) { return v; }
  template <class H>
  static Pair rounded(Pair v, H half) { return expand(pack(v, half), half); }

  // As bf16: a pair is packed to be stored anyway.
  using Base::larger, Base::magnitude;
  static Signed larger(Signed so_far, Pair v, bf16) {
    const __m512i magnitudes = _mm512_and_si512(pack(v, bf16{}), _mm512_set1_epi16(0x7fff));
    return bit_cast<Signed>(_mm512_max_epu16(bit_cast<__m512i>(so_far), magnitudes));
  }
  static float magnitude(Signed largest, bf16) {
    const __m512i both = bit_cast<__m512i>(largest), upper = _mm512_srli_epi32(both, 16);
    const __m512i lower = _mm512_and_si512(_mm512_max_epu16(both, upper), _mm512_set1_epi32(0xffff));
    return bit_cast<float>(_mm512_reduce_max_epu32(lower) << 16);
  }

  // The packs work within quarters, which have four elements of each block by turns.
  using Base::store_two_int8;
  static void store_two_int8(int8_t* p, Pair first, Pair second, bf16) {
    const auto packed = [](Vec x, Vec y) { return _mm512_packs_epi32(_mm512_cvtps_epi32(x), _mm512_cvtps_epi32(y)); };
    const __m512i even = packed(first.a, second.a), odd = _mm512_slli_epi16(packed(first.b, second.b), 8);
    constexpr int kSecondWhereMaskElseFirst = 0xca;
    const __m512i both = _mm512_ternarylogic_epi32(_mm512_set1_epi16(0xff), even, odd, kSecondWhereMaskElseFirst);
    _mm512_storeu_si512(p, _mm512_permutexvar_epi64(_mm512_set_epi64(7, 5, 3, 1, 6, 4, 2, 0), both));
  }
};

}  // namespace

const Kernels avx512_kernels = kernels_of<Avx512<true>>("avx512");

}  // namespace serving_ops::cpu
