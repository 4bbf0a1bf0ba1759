// The rows of strided tensors: which leading dimensions collapse, and where each row of each operand lies.
#pragma once

#include <cstdint>

namespace serving_ops {

// The leading dimensions of `Operands` tensors of one shape, as few as their strides allow. Strides in elements.
template <int Operands>
class RowSpace {
 public:
  static constexpr int kMaxDims = 6;  // after collapsing; more go to the reference

  // sizes and strides[operand] span num_dims leading dimensions. False where more than kMaxDims are left.
  bool build(int64_t num_dims, const int64_t* sizes, const int64_t* const (&strides)[Operands]) {
    for (int64_t d = num_dims - 1; d >= 0; --d) {
      num_rows_ *= sizes[d];
      if (sizes[d] == 1) continue;
      if (num_dims_ > 0 && continues(strides, d)) {
        dims_[num_dims_ - 1].size *= sizes[d];
        continue;
      }
      if (num_dims_ == kMaxDims) return false;
      Dim& dim = dims_[num_dims_++];
      dim.size = sizes[d];
      for (int k = 0; k < Operands; ++k) dim.stride[k] = strides[k][d];
    }
    return true;
  }

  int64_t num_rows() const { return num_rows_; }
  // How many dimensions are left, 0 for a single row.
  int num_dims() const { return num_dims_; }
  // Of a dimension that is left, innermost first; 1 row at stride 0 beyond them.
  int64_t size(int d) const { return d < num_dims_ ? dims_[d].size : 1; }
  int64_t stride(int d, int operand) const { return d < num_dims_ ? dims_[d].stride[operand] : 0; }
  // Distance from a row to one that comes later: the next, or the same row of the next run.
  int64_t ahead(int operand) const { return num_dims_ > 1 ? dims_[1].stride[operand] : stride(0, operand); }

  // run(offsets, count) for each run of rows of constant stride that makes up rows begin..end.
  template <class Run>
  void for_each_run(int64_t begin, int64_t end, Run run) const {
    int64_t index[kMaxDims] = {begin}, offsets[Operands];
    for (int d = 0; d + 1 < num_dims_; ++d) {
      index[d + 1] = index[d] / dims_[d].size;
      index[d] %= dims_[d].size;
    }
    while (begin < end) {
      for (int k = 0; k < Operands; ++k) {
        offsets[k] = 0;
        for (int d = 0; d < num_dims_; ++d) offsets[k] += index[d] * dims_[d].stride[k];
      }
      const int64_t left = num_dims_ > 1 ? dims_[0].size - index[0] : end - begin;
      const int64_t count = left < end - begin ? left : end - begin;
      run(offsets, count);
      begin += count;
      index[0] = 0;
      for (int d = 1; d < num_dims_ && ++index[d] == dims_[d].size && d + 1 < num_dims_; ++d) index[d] = 0;
    }
  }

 private:
  struct Dim {
    int64_t size;
    int64_t stride[Operands];
  };

  // Whether dimension d goes on where the outermost one so far ends, in every operand.
  bool continues(const int64_t* const (&strides)[Operands], int64_t d) const {
    const Dim& inner = dims_[num_dims_ - 1];
    for (int k = 0; k < Operands; ++k)
      if (strides[k][d] != inner.stride[k] * inner.size) return false;
    return true;
  }

  Dim dims_[kMaxDims];  // innermost first; left as it is beyond num_dims_, since clearing it shows at one row
  int num_dims_ = 0;
  int64_t num_rows_ = 1;
};

}  // namespace serving_ops
