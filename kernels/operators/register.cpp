// Puts the operators under torch.ops.serving_ops for CPU and CUDA tensors; Python defines the schemas
// (serving_ops/schemas.py). On a build of torch without CUDA the latter are never called.
#include <torch/csrc/stable/library.h>

#include "../cpu/isa.h"
#include "../cuda/run.h"
#include "count.h"
#include "export.h"
#include "operators.h"

namespace serving_ops {

std::atomic<uint64_t> kernel_calls[kNumOps];

}  // namespace serving_ops

STABLE_TORCH_LIBRARY_IMPL(serving_ops, CPU, library) {
  library.impl("fused_add_rms_norm", &serving_ops::fused_add_rms_norm_cpu);
  library.impl("rms_norm", &serving_ops::rms_norm_cpu);
  library.impl("rms_norm.out", &serving_ops::rms_norm_out_cpu);
  library.impl("rms_norm_gated", &serving_ops::rms_norm_gated_cpu);
  library.impl("rms_norm_gated.out", &serving_ops::rms_norm_gated_out_cpu);
  library.impl("rms_norm_backward", &serving_ops::rms_norm_backward_cpu);
  library.impl("rms_norm_gated_backward", &serving_ops::rms_norm_gated_backward_cpu);
  library.impl("_fused_add_rms_norm_refusal", &serving_ops::fused_add_rms_norm_refusal);
  library.impl("_rms_norm_refusal", &serving_ops::rms_norm_refusal);
  library.impl("_rms_norm_gated_refusal", &serving_ops::rms_norm_gated_refusal);
}

STABLE_TORCH_LIBRARY_IMPL(serving_ops, CUDA, library) {
  library.impl("fused_add_rms_norm", &serving_ops::fused_add_rms_norm_cuda);
  library.impl("rms_norm", &serving_ops::rms_norm_cuda);
  library.impl("rms_norm.out", &serving_ops::rms_norm_out_cuda);
  library.impl("rms_norm_gated", &serving_ops::rms_norm_gated_cuda);
  library.impl("rms_norm_gated.out", &serving_ops::rms_norm_gated_out_cuda);
}

SERVING_OPS_EXPORT uint64_t serving_ops_kernel_calls(int op) {
  return op < 0 || op >= serving_ops::kNumOps ? 0 : serving_ops::kernel_calls[op].load(std::memory_order_relaxed);
}

SERVING_OPS_EXPORT int serving_ops_cpu_use(const char* isa) { return serving_ops::cpu::use_kernels(isa); }

SERVING_OPS_EXPORT const char* serving_ops_cpu_isa() { return serving_ops::cpu::chosen_kernels().isa; }

SERVING_OPS_EXPORT void serving_ops_cuda_add_variant(uint64_t flags, int64_t size, int64_t group_size, int64_t min_rows,
                                                     int64_t max_rows, int64_t rows_per_program, void* function,
                                                     uint32_t num_warps, uint32_t shared_bytes, int dependent) {
  serving_ops::cuda::variants().add(
      {flags, size, group_size},
      {min_rows, max_rows, rows_per_program, function, 32 * num_warps, shared_bytes, dependent != 0});
}
