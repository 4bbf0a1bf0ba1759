// The instruction sets, and the choice among them.
#pragma once

#include "interface.h"

namespace serving_ops::cpu {

extern const Kernels avx512_kernels, avx2_kernels, neon_kernels, portable_kernels;

// The kernels of this build that this processor can run, best first, ended by null.
const Kernels* const* usable_kernels();

// The best of them, or what use_kernels chose.
const Kernels& chosen_kernels();

// Uses the kernels of one instruction set from here on. Returns false and changes nothing if they are not usable here.
bool use_kernels(const char* isa);

}  // namespace serving_ops::cpu
