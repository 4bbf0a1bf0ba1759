// The instruction sets, and the choice among them.
#pragma once

#include "norm.h"

namespace serving_ops::cpu {

extern const Kernels avx512_kernels, avx2_kernels, neon_kernels, portable_kernels;

// The kernels of this build that this processor can run, best first, ended by null.
const Kernels* const* usable_kernels();

// The best of them, or what use_kernels chose.
const Kernels& chosen_kernels();

// Chooses those of an instruction set from here on. False, and nothing changes, where they are not among the usable ones.
bool use_kernels(const char* isa);

}  // namespace serving_ops::cpu
