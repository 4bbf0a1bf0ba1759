// From a backward call to kernel runs: rows in blocks, each with a partial sum of dweight of its own. How many there are
// does not depend on the threads, so neither do the bits.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/c/shim.h>

#include "isa.h"

namespace serving_ops::cpu {

struct BackwardCall {
  NormSpec spec;
  Rows dout, s, more, ds;
  float* dweight;  // num_blocks partial sums, each with as much behind it to work in, or null
  int64_t num_rows, num_blocks;

  Rows from(const Rows& rows, int64_t row) const {
    if (rows.data == nullptr) return rows;
    return {static_cast<char*>(rows.data) + row * rows.stride * element_bytes(spec.dtype), rows.stride};
  }
  void run_block(int64_t block) const {
    const int64_t first = block * num_rows / num_blocks, last = (block + 1) * num_rows / num_blocks;
    chosen_kernels().rms_norm_backward(spec, from(dout, first), from(s, first), from(more, first), from(ds, first),
                                       dweight == nullptr ? nullptr : dweight + block * 2 * whole_blocks(spec.size), last - first);
  }
};

inline AOTITorchError run(const BackwardCall& call) {
  const auto blocks = [](int64_t begin, int64_t end, void* context) {
    for (int64_t block = begin; block < end; ++block) static_cast<const BackwardCall*>(context)->run_block(block);
  };
  return torch_parallel_for(0, call.num_blocks, 1, blocks, const_cast<BackwardCall*>(&call));
}

}  // namespace serving_ops::cpu
