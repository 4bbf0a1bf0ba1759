// From a backward call to kernel runs: rows in blocks, each with its own sums over rows, then the sum of those. How many
// blocks there are does not depend on the threads, so neither do the bits.
#pragma once

#include <cstring>
#include <memory>
#include <new>

#include "../threads.h"

namespace serving_ops::cpu {

constexpr int64_t kBlockRows = 32;             // at least in a block: its sums over rows cost about a row
constexpr int64_t kBlockElements = 32 * 1024;  // at least in a block, and so for a thread
constexpr int64_t kMostBlocks = 64;            // bounds the memory of the sums

inline int64_t num_blocks(int64_t num_rows, int64_t size) {
  int64_t blocks = kMostBlocks;
  for (int64_t most : {num_rows / kBlockRows, num_rows * size / kBlockElements})
    if (most < blocks) blocks = most;
  return blocks < 1 ? 1 : blocks;
}

inline Gradient gradient_of(const Param& param, const TensorView& result) {
  return {param.data == nullptr ? nullptr : result.data, param.dtype};
}

// The sums over rows that a call wants, in blocks: those of weight, then those of bias, each with as much again to work in.
class BlockSums {
 public:
  BlockSums(const BackwardCall& call, int64_t num_blocks)
      : group_size_(call.spec.group_size),
        size_(call.spec.size / group_size_ * whole_blocks(group_size_)),
        weights_(call.spec.weight.data == nullptr ? 0 : 2 * size_),
        block_(weights_ + (call.spec.bias.data == nullptr ? 0 : 2 * size_)),
        num_blocks_(num_blocks) {
    if (block_ == 0) return;
    data_.reset(new (std::nothrow) float[block_ * num_blocks]);
    if (data_ == nullptr) throw std::runtime_error("serving_ops: allocating the sums over rows failed (out of memory?)");
  }
  // All zero.
  void begin(int64_t block, BackwardRows* rows) const {
    float* data = data_.get() + block * block_;
    if (block_ != 0) std::memset(data, 0, block_ * sizeof(float));
    rows->dweight = weights_ == 0 ? nullptr : data;
    rows->dbias = block_ == weights_ ? nullptr : data + weights_;
  }
  void add_up(const BackwardCall& call) const {
    add_up(call.spec.dtype, data_.get(), gradient_of(call.spec.weight, call.dweight));
    add_up(call.spec.dtype, data_.get() + weights_, gradient_of(call.spec.bias, call.dbias));
  }

 private:
  // The gradient's elements lie in groups, each of whole blocks.
  void add_up(Dtype rows, const float* sums, Gradient gradient) const {
    if (gradient.data == nullptr) return;
    for (int64_t at = 0; at < size_; at += whole_blocks(group_size_)) {
      chosen_kernels().sum_of_parts(rows, sums + at, num_blocks_, block_, group_size_, gradient);
      gradient.data = static_cast<char*>(gradient.data) + group_size_ * element_bytes(gradient.dtype);
    }
  }

  int64_t group_size_, size_, weights_, block_, num_blocks_;
  std::unique_ptr<float[]> data_;
};

inline bool run(const BackwardCall& call) {
  if (!call.x.on_cpu()) return false;
  const Kernels& kernels = chosen_kernels();
  const auto kernel = call.is_gated ? kernels.rms_norm_gated_backward : kernels.rms_norm_backward;
  const bool has_gate = call.is_gated && call.has_second;
  const TensorView* const tensors[] = {&call.dout, &call.x, call.has_second ? &call.second : nullptr, &call.dx,
                                       has_gate ? &call.dsecond : nullptr};
  const int64_t num_rows = call.space.num_rows(), count = num_blocks(num_rows, call.spec.size);
  const BlockSums sums(call, count);
  const auto blocks = [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      BackwardRows of;
      sums.begin(block, &of);
      const int64_t first = block * num_rows / count, last = (block + 1) * num_rows / count;
      if (first == last) continue;
      for_each_run<5>(call.space, tensors, first, last, [&](const Rows(&rows)[5], int64_t run) {
        kernel(call.spec, {rows[0], rows[1], rows[2], rows[3], rows[4], of.dweight, of.dbias}, run);
      });
    }
  };
  if (count == 1) blocks(0, 1);
  else on_threads(count, 1, blocks);
  sums.add_up(call);
  return true;
}

}  // namespace serving_ops::cpu
