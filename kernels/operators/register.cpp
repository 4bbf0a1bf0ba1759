// Puts the operators under torch.ops.serving_ops for CPU and CUDA tensors; Python defines the schemas
// (serving_ops/schemas.py). On a build of torch without CUDA the latter are never called.
#include <torch/csrc/stable/library.h>

#include <exception>

#include "../cpu/isa.h"
#include "../cuda/run.h"
#include "operators.h"

using namespace serving_ops;  // contract.def names what is in it

// For Python, through ctypes (serving_ops/extension.py).
#define SERVING_OPS_EXPORT extern "C" __attribute__((visibility("default")))

STABLE_TORCH_LIBRARY_IMPL(serving_ops, CPU, library) {
#define CPU(name, function) library.impl(#name, &function);
#include "../contract.def"
}

STABLE_TORCH_LIBRARY_IMPL(serving_ops, CUDA, library) {
#define CUDA(name, function) library.impl(#name, &function);
#include "../contract.def"
}

SERVING_OPS_EXPORT uint64_t serving_ops_kernel_calls(int op) {
  return op < 0 || op >= kNumOps ? 0 : kernel_calls[op].load(std::memory_order_relaxed);
}

SERVING_OPS_EXPORT int serving_ops_cpu_use(const char* isa) { return cpu::use_kernels(isa); }

SERVING_OPS_EXPORT const char* serving_ops_cpu_isa() { return cpu::chosen_kernels().isa; }

// 0 where it was added; nothing that C++ throws may reach Python's C.
SERVING_OPS_EXPORT int serving_ops_cuda_add_variant(uint64_t flags, int64_t size, int64_t group_size, int64_t min_rows,
                                                    int64_t max_rows, int64_t rows_per_program, void* function,
                                                    uint32_t num_warps, uint32_t shared_bytes, int dependent,
                                                    const uint8_t* parameters, int num_parameters) {
  try {
    cuda::variants().add({flags, size, group_size},
                         {min_rows, max_rows, rows_per_program, function, 32 * num_warps, shared_bytes, dependent != 0,
                          cuda::Recipe(parameters, num_parameters)});
    return 0;
  } catch (const std::exception&) {
    return -1;
  }
}

// Python reads this from the file before it loads it: loading registers the operators.
SERVING_OPS_EXPORT __attribute__((used)) const char serving_ops_contract[] =
    "serving_ops contract: version " SERVING_OPS_VERSION " " SERVING_OPS_CONTRACT;
