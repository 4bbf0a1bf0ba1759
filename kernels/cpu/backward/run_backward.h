// From a backward call to kernel runs: rows in blocks, each with its own sums over rows, then the sum of those. How many
// blocks there are does not depend on the threads, so neither do the bits.
#pragma once

#include <cstring>
#include <memory>
#include <new>

#include "../../operators/backward_calls.h"
#include "../isa.h"

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

// Sums over rows that a call wants, in blocks: gradients[k].data null for one that it does not.
template <int Vectors>
class BlockSums {
 public:
  // `size` floats a vector.
  BlockSums(const Gradient (&gradients)[Vectors], int64_t size, int64_t num_blocks)
      : block_(0), num_blocks_(num_blocks), size_(size) {
    for (int k = 0; k < Vectors; ++k) {
      place_[k] = gradients[k].data == nullptr ? -1 : block_;
      if (gradients[k].data != nullptr) block_ += 2 * size;  // as much again to work in
    }
    if (block_ == 0) return;
    data_.reset(new (std::nothrow) float[block_ * num_blocks]);
    if (data_ == nullptr) throw std::runtime_error("serving_ops: allocating the sums over rows failed (out of memory?)");
  }
  void clear(int64_t block) const {
    if (block_ != 0) std::memset(data_.get() + block * block_, 0, block_ * sizeof(float));
  }
  float* of(int vector, int64_t block) const {
    return place_[vector] < 0 ? nullptr : data_.get() + block * block_ + place_[vector];
  }
  // The gradient's elements lie in groups of group_size, each of whole blocks.
  void add_up(Dtype rows, int vector, int64_t group_size, Gradient gradient) const {
    if (gradient.data == nullptr) return;
    const int64_t padded = whole_blocks(group_size);
    for (int64_t group = 0; group < size_ / padded; ++group) {
      Gradient part = gradient;
      part.data = static_cast<char*>(gradient.data) + group * group_size * element_bytes(gradient.dtype);
      chosen_kernels().sum_of_parts(rows, of(vector, 0) + group * padded, num_blocks_, block_, group_size, part);
    }
  }

 private:
  int64_t block_, num_blocks_, size_, place_[Vectors];
  std::unique_ptr<float[]> data_;
};

// run(rows, count, block) for every run of rows of constant strides, blocks on torch's threads. tensors[k] is null for an
// operand that the call lacks.
template <int Operands, int Vectors, class Run>
inline void for_each_block_of_rows(const RowSpace<Operands>& space, const TensorView* const (&tensors)[Operands],
                                   Dtype dtype, int64_t num_blocks, const BlockSums<Vectors>& sums, const Run& run) {
  const auto one = [&](int64_t block) {
    sums.clear(block);
    const int64_t first = block * space.num_rows() / num_blocks, last = (block + 1) * space.num_rows() / num_blocks;
    if (first == last) return;
    space.for_each_run(first, last, [&](const int64_t(&offsets)[Operands], int64_t count) {
      Rows rows[Operands];
      for (int k = 0; k < Operands; ++k)
        if (tensors[k] != nullptr)
          rows[k] = {tensors[k]->data + offsets[k] * element_bytes(dtype), space.row_stride(k), space.ahead(k)};
      run(rows, count, block);
    });
  };
  const auto blocks = [](int64_t begin, int64_t end, void* context) {
    for (int64_t block = begin; block < end; ++block) (*static_cast<const decltype(one)*>(context))(block);
  };
  if (num_blocks == 1) return one(0);
  check(torch_parallel_for(0, num_blocks, 1, blocks, const_cast<void*>(static_cast<const void*>(&one))),
        "torch_parallel_for");
}

inline Gradient gradient_of(const Param& param, const TensorView& result) {
  return {param.data == nullptr ? nullptr : result.data, param.dtype};
}

inline bool run(const NormBackwardCall& call) {
  if (!call.s.on_cpu()) return false;
  const Gradient dweight = gradient_of(call.spec.weight, call.dweight);
  const int64_t blocks = num_blocks(call.space.num_rows(), call.spec.size);
  const BlockSums<1> sums({dweight}, whole_blocks(call.spec.size), blocks);
  const auto kernel = chosen_kernels().rms_norm_backward;
  for_each_block_of_rows<4>(
      call.space, {&call.dout, &call.s, call.has_more ? &call.more : nullptr, &call.ds}, call.spec.dtype, blocks, sums,
      [&](const Rows(&rows)[4], int64_t count, int64_t block) {
        kernel(call.spec, rows[0], rows[1], rows[2], rows[3], sums.of(0, block), count);
      });
  sums.add_up(call.spec.dtype, 0, call.spec.size, dweight);
  return true;
}

inline bool run(const GatedBackwardCall& call) {
  if (!call.x.on_cpu()) return false;
  const GatedNormSpec& spec = call.spec;
  const Gradient dweight = gradient_of(spec.weight, call.dweight), dbias = gradient_of(spec.bias, call.dbias);
  const int64_t blocks = num_blocks(call.space.num_rows(), spec.size);
  const BlockSums<2> sums({dweight, dbias}, spec.size / spec.group_size * whole_blocks(spec.group_size), blocks);
  const auto kernel = chosen_kernels().rms_norm_gated_backward;
  for_each_block_of_rows<5>(
      call.space,
      {&call.dout, &call.x, call.has_gate ? &call.z : nullptr, &call.dx, call.has_gate ? &call.dz : nullptr},
      spec.dtype, blocks, sums, [&](const Rows(&rows)[5], int64_t count, int64_t block) {
        kernel(spec, rows[0], rows[1], rows[2], rows[3], rows[4], sums.of(0, block), sums.of(1, block), count);
      });
  sums.add_up(spec.dtype, 0, spec.group_size, dweight);
  sums.add_up(spec.dtype, 1, spec.group_size, dbias);
  return true;
}

}  // namespace serving_ops::cpu
