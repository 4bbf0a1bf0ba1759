// Blocks of elements as pairs of fp32 vectors, in GCC's vector extensions: what every instruction set starts from, and
// all that the portable one has. Internal linkage throughout: each instruction set compiles this with its own flags, and
// a function shared between object files could end up with instructions that the processor lacks.
#pragma once

#include <cstdint>
#include <cstring>

#include "interface.h"

namespace serving_ops::cpu {
namespace {

struct bf16 {
  uint16_t bits;
};
struct fp16 {
  uint16_t bits;
};

struct Full {};  // a whole block
struct Part {    // its first `count` elements, 0 < count < kBlock
  int count;
};

template <class To, class From>
inline To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

template <class T, int W>
struct Lanes {
  using Vector [[gnu::vector_size(W * sizeof(T))]] = T;
};

template <int W>
struct PairOf {
  typename Lanes<float, W>::Vector a, b;

  friend PairOf operator+(PairOf x, PairOf y) { return {x.a + y.a, x.b + y.b}; }
  friend PairOf operator-(PairOf x, PairOf y) { return {x.a - y.a, x.b - y.b}; }
  friend PairOf operator*(PairOf x, PairOf y) { return {x.a * y.a, x.b * y.b}; }
  friend PairOf operator*(PairOf x, float y) { return {x.a * y, x.b * y}; }
  friend PairOf operator+(PairOf x, float y) { return {x.a + y, x.b + y}; }
};

// W lanes. A block is 2 W elements; in a pair made of bf16 the even elements lie in `a` and the odd ones in `b`, since
// that takes two operations instead of four, and in order otherwise. Self is the instruction set that derives from this.
template <class Self, int W>
struct Generic {
  static constexpr int kBlock = 2 * W;
  using Vec = typename Lanes<float, W>::Vector;
  using Bits = typename Lanes<uint32_t, W>::Vector;
  using Signed = typename Lanes<int32_t, W>::Vector;
  using Halves = typename Lanes<uint16_t, W>::Vector;
  using Bytes = typename Lanes<uint8_t, W>::Vector;
  using Pair = PairOf<W>;
  using Normal = Self;  // what to use where every value to be rounded is known to be no subnormal

  template <class To>
  static To read(const void* p) {
    To to;
    std::memcpy(&to, p, sizeof to);
    return to;
  }

  static Vec broadcast(float value) { return Vec{} + value; }
  static Vec fma(Vec x, Vec y, Vec z) { return x * y + z; }
  static Vec smaller_nonzero(Vec x, Vec) { return x; }
  static float smallest(Vec v) { return v[0]; }
  static float sum(Vec v) {
    float lanes[W];
    std::memcpy(lanes, &v, sizeof v);
    for (int half = W / 2; half > 0; half /= 2)
      for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
    return lanes[0];
  }

  // x * 2^n, n integral, |n| <= 254. In two steps, so that 2^128 and the subnormals come out right.
  static Vec scale(Vec x, Vec n) {
    const Vec magic = broadcast(12582912.0f);  // 1.5 * 2^23: adding it leaves the integer in the low bits
    const Bits whole = bit_cast<Bits>(n + magic) - bit_cast<Bits>(magic);
    const Bits half = bit_cast<Bits>(bit_cast<Signed>(whole) >> 1);
    return x * bit_cast<Vec>((half + 127) << 23) * bit_cast<Vec>((whole - half + 127) << 23);
  }
  static constexpr bool kScalesByFloor = false;  // whether scale takes any n, for its floor; then there is fraction
  static Vec fraction(Vec x) { return x; }
  static Vec round_to_integer(Vec x) {
    const Vec magic = broadcast(12582912.0f);
    return (x + magic) - magic;
  }
  // Both keep a NaN in x.
  static Vec at_least(Vec x, Vec low) { return x < low ? low : x; }
  static Vec at_most(Vec x, Vec high) { return x > high ? high : x; }

  static Vec widen(Halves half) {
    const Bits h = __builtin_convertvector(half, Bits);
    const Bits sign = (h & 0x8000) << 16;
    const Vec scaled = bit_cast<Vec>((h & 0x7fff) << 13) * 0x1p112f;  // subnormals become normal on the way
    const Bits special = (h & 0x7c00) == 0x7c00 ? Bits{} + 0x7f800000 : Bits{};
    return bit_cast<Vec>(bit_cast<Bits>(scaled) | special | sign);
  }
  static Halves narrow(Vec v) {
    const Bits bits = bit_cast<Bits>(v), sign = (bits >> 16) & 0x8000, magnitude = bits & 0x7fffffff;
    const Bits normal = (magnitude + 0xfff + ((magnitude >> 13) & 1) - (112u << 23)) >> 13;
    const Bits subnormal = bit_cast<Bits>(bit_cast<Vec>(magnitude) + 0.5f) - 0x3f000000;  // 0.5's ulp is fp16's smallest
    Bits half = magnitude < (113u << 23) ? subnormal : normal;
    half = magnitude >= 0x477ff000 ? Bits{} + 0x7c00 : half;  // 65520 rounds to infinity
    half = magnitude > 0x7f800000 ? Bits{} + 0x7e00 : half;
    return __builtin_convertvector(half | sign, Halves);
  }

  // To the nearest bf16, still in 32 bits with the low half undefined.
  static Bits round_bf16(Vec v) {
    const Bits bits = bit_cast<Bits>(v);
    const Bits rounded = bits + 0x7fff + ((bits >> 16) & 1);
    return v != v ? bits | 0x400000 : rounded;
  }

  static Bits pack_bf16(Pair v) { return (round_bf16(v.a) >> 16) | (round_bf16(v.b) & 0xffff0000u); }

  // A vector at a time, as in `store`: GCC copies a pair of them in smaller pieces.
  static Pair load(const float* p, Full) { return {read<Vec>(p), read<Vec>(p + W)}; }
  static Pair load(const bf16* p, Full) {
    const Bits both = read<Bits>(p);
    return {bit_cast<Vec>(both << 16), bit_cast<Vec>(both & 0xffff0000u)};
  }
  static Pair load(const fp16* p, Full) {
    return {Self::widen(read<Halves>(p)), Self::widen(read<Halves>(p + W))};
  }
  static void store(float* p, Pair v, Full) {
    std::memcpy(p, &v.a, sizeof v.a);
    std::memcpy(p + W, &v.b, sizeof v.b);
  }
  static void store(bf16* p, Pair v, Full) {
    const Bits both = pack_bf16(v);
    std::memcpy(p, &both, sizeof both);
  }
  static void store(fp16* p, Pair v, Full) {
    const Halves two[2] = {Self::narrow(v.a), Self::narrow(v.b)};
    std::memcpy(p, two, sizeof two);
  }
  template <class T>
  static Pair load(const T* p, Part part) {
    T block[kBlock] = {};
    std::memcpy(block, p, part.count * sizeof(T));
    return Self::load(block, Full{});
  }
  template <class T>
  static void store(T* p, Pair v, Part part) {
    T block[kBlock];
    Self::store(block, v, Full{});
    std::memcpy(p, block, part.count * sizeof(T));
  }

  // The value that a store and a load would give.
  static Pair rounded(Pair v, bf16) {
    return {bit_cast<Vec>(round_bf16(v.a) & 0xffff0000u), bit_cast<Vec>(round_bf16(v.b) & 0xffff0000u)};
  }
  static Pair rounded(Pair v, fp16) { return {Self::widen(Self::narrow(v.a)), Self::widen(Self::narrow(v.b))}; }

  static Pair rounded(Pair v, float) { return v; }

  // The larger magnitudes so far, as bits: a NaN's are the largest. Self::magnitude says which it is, rounded to X.
  template <class X>
  static Signed larger(Signed so_far, Pair v, X) {
    const Signed a = bit_cast<Signed>(v.a) & 0x7fffffff, b = bit_cast<Signed>(v.b) & 0x7fffffff;
    const Signed larger = a > b ? a : b;
    return so_far > larger ? so_far : larger;
  }
  // Rounding keeps the order, so that one rounding is enough.
  template <class X>
  static float magnitude(Signed largest, X) {
    int32_t most = largest[0];
    for (int i = 1; i < W; ++i) most = largest[i] > most ? largest[i] : most;
    const Vec all = broadcast(bit_cast<float>(most));
    return Self::rounded(Pair{all, all}, X{}).a[0];
  }

  // The nearest integer in the lowest byte, |x| <= 2^22; 0 for a NaN.
  static Bits to_integer(Vec x) { return bit_cast<Bits>((x == x ? x : Vec{}) + 12582912.0f); }  // as in scale
  // v is arranged as a pair made of X is.
  template <class X>
  static void store_int8(int8_t* p, Pair v, X, Full) {
    const Bits a = Self::to_integer(v.a), b = Self::to_integer(v.b);
    if constexpr (__is_same(X, bf16)) {
      const Halves both = __builtin_convertvector((a & 0xff) | (b << 8), Halves);
      std::memcpy(p, &both, sizeof both);
    } else {
      const Bytes two[2] = {__builtin_convertvector(a, Bytes), __builtin_convertvector(b, Bytes)};
      std::memcpy(p, two, sizeof two);
    }
  }
  template <class X>
  static void store_int8(int8_t* p, Pair v, X, Part part) {
    int8_t block[kBlock];
    store_int8(block, v, X{}, Full{});
    std::memcpy(p, block, part.count);
  }

  // Two blocks, one behind the other.
  template <class X>
  static void store_two_int8(int8_t* p, Pair first, Pair second, X) {
    Self::store_int8(p, first, X{}, Full{});
    Self::store_int8(p + kBlock, second, X{}, Full{});
  }

  // Of the two vectors, one behind the other, the elements at `places`, which the compiler knows.
  static Vec elements(Pair v, Signed places) {
#ifdef __clang__
    Vec chosen;
    for (int i = 0; i < W; ++i) chosen[i] = places[i] < W ? v.a[places[i]] : v.b[places[i] - W];
    return chosen;
#else
    return __builtin_shuffle(v.a, v.b, places);
#endif
  }
  // A pair in order, arranged as a pair made of bf16 is.
  static Pair even_odd(Pair v) {
    Signed even;
    for (int i = 0; i < W; ++i) even[i] = 2 * i;
    return {elements(v, even), elements(v, even + 1)};
  }
  static Pair in_order(Pair even_odd) {
    Signed lower;
    for (int i = 0; i < W; ++i) lower[i] = i / 2 + i % 2 * W;
    return {elements(even_odd, lower), elements(even_odd, lower + W / 2)};
  }
};

}  // namespace
}  // namespace serving_ops::cpu
