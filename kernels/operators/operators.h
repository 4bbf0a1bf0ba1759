// The boxed functions that register.cpp registers; one file an op.
#pragma once

#include "arguments.h"

namespace serving_ops {

void fused_add_rms_norm_cpu(StableIValue* stack, uint64_t num_args, uint64_t num_results);
void fused_add_rms_norm_cuda(StableIValue* stack, uint64_t num_args, uint64_t num_results);
void rms_norm_cpu(StableIValue* stack, uint64_t num_args, uint64_t num_results);
void rms_norm_cuda(StableIValue* stack, uint64_t num_args, uint64_t num_results);
void rms_norm_out_cpu(StableIValue* stack, uint64_t num_args, uint64_t num_results);
void rms_norm_out_cuda(StableIValue* stack, uint64_t num_args, uint64_t num_results);
void rms_norm_gated_cpu(StableIValue* stack, uint64_t num_args, uint64_t num_results);
void rms_norm_gated_cuda(StableIValue* stack, uint64_t num_args, uint64_t num_results);
void rms_norm_gated_out_cpu(StableIValue* stack, uint64_t num_args, uint64_t num_results);
void rms_norm_gated_out_cuda(StableIValue* stack, uint64_t num_args, uint64_t num_results);

}  // namespace serving_ops
