#include "isa.h"

#include <cstdlib>
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

const Kernels& choose() {
  const Kernels* const* usable = usable_kernels();
  const char* wanted = std::getenv("SERVING_OPS_CPU_ISA");
  for (const Kernels* const* k = usable; wanted != nullptr && *k != nullptr; ++k)
    if (std::strcmp((*k)->isa, wanted) == 0) return **k;
  return **usable;
}

}  // namespace

const Kernels* const* usable_kernels() {
  static const Usable usable;
  return usable.best_first;
}

const Kernels& chosen_kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace serving_ops::cpu
