// The boxed functions that register.cpp registers; one file an op.
#pragma once

#include "launch.h"

namespace serving_ops::cpu {

void fused_add_rms_norm(StableIValue* stack, uint64_t num_args, uint64_t num_results);
void rms_norm(StableIValue* stack, uint64_t num_args, uint64_t num_results);
void rms_norm_out(StableIValue* stack, uint64_t num_args, uint64_t num_results);
void rms_norm_gated(StableIValue* stack, uint64_t num_args, uint64_t num_results);
void rms_norm_gated_out(StableIValue* stack, uint64_t num_args, uint64_t num_results);

}  // namespace serving_ops::cpu
