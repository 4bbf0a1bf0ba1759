// The instruction sets, and the choice among them.
#pragma once

#include "norm.h"

namespace serving_ops::cpu {

extern const Kernels avx512_kernels, avx2_kernels, neon_kernels, portable_kernels;

// The kernels of this build that this processor can run, best first, ended by null.
const Kernels* const* usable_kernels();

// The best of them, or the one that the environment variable SERVING_OPS_CPU_ISA names; a name that is not among them is
// ignored. Chosen once.
const Kernels& chosen_kernels();

}  // namespace serving_ops::cpu
