#include "isa.h"

#include <atomic>
#include <cstring>

namespace serving_ops::cpu {
namespace {

struct Usable {
  const Kernels* best_first[4] = {};
  Usable() {
    int count = 0;
#if defined(__x86_64__)
    // __builtin_cpu_supports asks the operating system's register state too.
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bf16"))
      best_first[count++] = &avx512_kernels;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
      best_first[count++] = &avx2_kernels;
#elif defined(__aarch64__)
    best_first[count++] = &neon_kernels;  // every AArch64 processor has it
#endif
    best_first[count] = &portable_kernels;
  }
};

std::atomic<const Kernels*>& chosen() {
  static std::atomic<const Kernels*> kernels{*usable_kernels()};
  return kernels;
}

}  // namespace

const Kernels* const* usable_kernels() {
  static const Usable usable;
  return usable.best_first;
}

const Kernels& chosen_kernels() { return *chosen().load(std::memory_order_relaxed); }

bool use_kernels(const char* isa) {
  for (const Kernels* const* k = usable_kernels(); *k != nullptr; ++k)
    if (std::strcmp((*k)->isa, isa) == 0) {
      chosen().store(*k, std::memory_order_relaxed);
      return true;
    }
  return false;
}

}  // namespace serving_ops::cpu
