// From a call to a launch of the kernel that Triton compiled for it. False, with nothing launched, where there is none
// yet: then Python (serving_ops/cuda.py) compiles, launches and adds it, or finds that no kernel takes the call.
#pragma once

#include "../operators/rope_call.h"
#include "variants.h"

namespace serving_ops::cuda {

bool run(const NormCall& call);
bool run(const RopeCall& call);

// Of this process.
Variants& variants();

}  // namespace serving_ops::cuda
