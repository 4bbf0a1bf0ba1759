// The boxed functions that register.cpp registers; one file an op.
#pragma once

#include "arguments.h"

namespace serving_ops {

using Boxed = void(StableIValue* stack, uint64_t num_args, uint64_t num_results);

#define CPU(name, function) Boxed function;
#define CUDA(name, function) Boxed function;
#include "../contract.def"

}  // namespace serving_ops
