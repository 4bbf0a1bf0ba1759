// Puts the kernels under torch.ops.serving_ops for the CPU; Python defines the schemas (serving_ops/schemas.py).
#include <torch/csrc/stable/library.h>

#include "ops.h"

namespace serving_ops::cpu {

std::atomic<uint64_t> calls[kNumOps];

}  // namespace serving_ops::cpu

STABLE_TORCH_LIBRARY_IMPL(serving_ops, CPU, library) {
  library.impl("fused_add_rms_norm", &serving_ops::cpu::fused_add_rms_norm);
  library.impl("rms_norm", &serving_ops::cpu::rms_norm);
  library.impl("rms_norm.out", &serving_ops::cpu::rms_norm_out);
  library.impl("rms_norm_gated", &serving_ops::cpu::rms_norm_gated);
  library.impl("rms_norm_gated.out", &serving_ops::cpu::rms_norm_gated_out);
}

// For Python, through ctypes.
extern "C" {
__attribute__((visibility("default"))) uint64_t serving_ops_cpu_calls(int op) {
  using namespace serving_ops::cpu;
  return op < 0 || op >= kNumOps ? 0 : calls[op].load(std::memory_order_relaxed);
}
__attribute__((visibility("default"))) const char* serving_ops_cpu_isa() {
  return serving_ops::cpu::chosen_kernels().isa;
}
}
