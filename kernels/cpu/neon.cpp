// NEON on AArch64: 8 elements a block.
#include <arm_neon.h>

#include "kernel_table.h"

namespace serving_ops::cpu {
namespace {

struct Neon : Generic<Neon, 4> {
  static Vec fma(Vec x, Vec y, Vec z) { return vfmaq_f32(z, x, y); }
  static Vec round_to_integer(Vec x) { return vrndnq_f32(x); }
  static Bits to_integer(Vec x) { return bit_cast<Bits>(vcvtnq_s32_f32(x)); }  // a NaN gives 0
  static Vec widen(Halves half) { return vcvt_f32_f16(bit_cast<float16x4_t>(half)); }
  static Halves narrow(Vec v) { return bit_cast<Halves>(vcvt_f16_f32(v)); }
};

}  // namespace

const Kernels neon_kernels = kernels_of<Neon>("neon");

}  // namespace serving_ops::cpu
