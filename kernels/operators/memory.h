// Which tensors of a call may share memory.
#pragma once

#include "tensor_view.h"

namespace serving_ops {

// The tensors of a call, of which some are written: those share memory with no other. The tests are cheap, and so may
// refuse a layout whose elements lie apart.
class Memory {
 public:
  enum Use : uint8_t { kRead, kMayBecomeNormed, kWritten, kNormed };

  void add(const char* name, const TensorView& tensor, Use use) { used_[count_++] = {name, &tensor, tensor.end(), use}; }

  Refusal why_not() const {
    for (int i = 0; i < count_; ++i) {
      const Used& a = used_[i];
      if (a.is_written() && !a.tensor->is_writable())
        return {a.name, " is written, and two of its elements may share memory"};
      for (int j = 0; j < i; ++j)
        if (a.shares_memory(used_[j])) return {used_[j].name, " may share memory with a tensor that is written"};
    }
    return {};
  }

 private:
  struct Used {
    const char* name;
    const TensorView* tensor;
    const char* end;
    Use use;

    bool is_written() const { return use >= kWritten; }
    bool shares_memory(const Used& other) const {
      if (!is_written() && !other.is_written()) return false;
      if (tensor->data >= other.end || other.tensor->data >= end) return false;
      const bool may_be_it = use == kNormed && other.use == kMayBecomeNormed && tensor->is_same_view(*other.tensor);
      return !may_be_it && !tensor->lies_between_rows_of(*other.tensor);
    }
  };

  static constexpr int kMost = 12;
  Used used_[kMost];
  int count_ = 0;
};

}  // namespace serving_ops
