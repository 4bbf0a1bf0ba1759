// How many calls of each operator the kernels ran, on every device; read through serving_ops_kernel_calls.
#pragma once

#include <atomic>
#include <cstdint>

#include "calls.h"

namespace serving_ops {

extern std::atomic<uint64_t> kernel_calls[kNumOps];

inline void count(Op op) { kernel_calls[op].fetch_add(1, std::memory_order_relaxed); }

}  // namespace serving_ops
