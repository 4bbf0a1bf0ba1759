// AVX2 with FMA and F16C: 16 elements a block.
#include <immintrin.h>

#include "kernel_table.h"

namespace serving_ops::cpu {
namespace {

struct Avx2 : Generic<Avx2, 8> {
  static Vec fma(Vec x, Vec y, Vec z) { return _mm256_fmadd_ps(x, y, z); }
  static Vec round_to_integer(Vec x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static Bits to_integer(Vec x) { return bit_cast<Bits>(_mm256_cvtps_epi32(x)); }  // a NaN's lowest byte is 0
  // min and max give their second operand where either is a NaN.
  static Vec at_least(Vec x, Vec low) { return _mm256_max_ps(low, x); }
  static Vec at_most(Vec x, Vec high) { return _mm256_min_ps(high, x); }
  static Vec widen(Halves half) { return _mm256_cvtph_ps(bit_cast<__m128i>(half)); }
  static Halves narrow(Vec v) { return bit_cast<Halves>(_mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT)); }
  // The packs work within halves, which have four elements of each block by turns.
  using Generic::store_two_int8;
  static void store_two_int8(int8_t* p, Pair first, Pair second, bf16) {
    const auto packed = [](Vec x, Vec y) { return _mm256_packs_epi32(_mm256_cvtps_epi32(x), _mm256_cvtps_epi32(y)); };
    const __m256i even = _mm256_and_si256(packed(first.a, second.a), _mm256_set1_epi16(0xff));
    const __m256i both = _mm256_or_si256(even, _mm256_slli_epi16(packed(first.b, second.b), 8));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(both, 0xd8));
  }
};

}  // namespace

const Kernels avx2_kernels = kernels_of<Avx2>("avx2");

}  // namespace serving_ops::cpu
