// Any processor: 8 elements a block, what the compiler makes of four-lane vectors.
#include "kernel_table.h"

namespace serving_ops::cpu {
namespace {

struct Portable : Generic<Portable, 4> {};

}  // namespace

const Kernels portable_kernels = kernels_of<Portable>("portable");

}  // namespace serving_ops::cpu
