// The boxed functions that register.cpp registers; one file an op.
#pragma once

#include "arguments.h"

namespace serving_ops {

using Boxed = void(StableIValue* stack, uint64_t num_args, uint64_t num_results);

Boxed fused_add_rms_norm_cpu, fused_add_rms_norm_cuda, fused_add_rms_norm_refusal;
Boxed rms_norm_cpu, rms_norm_cuda, rms_norm_out_cpu, rms_norm_out_cuda, rms_norm_refusal;
Boxed rms_norm_gated_cpu, rms_norm_gated_cuda, rms_norm_gated_out_cpu, rms_norm_gated_out_cuda, rms_norm_gated_refusal;
Boxed rms_norm_backward_cpu, rms_norm_gated_backward_cpu;

}  // namespace serving_ops
