// The compiled kernels that this process has, by all that tells one from another. Triton compiles them; a call that finds
// its variant here never sees Python. No torch and no CUDA here.
#pragma once

#include <cstdint>
#include <mutex>
#include <shared_mutex>
#include <unordered_map>
#include <vector>

#include "fields.h"

namespace serving_ops::cuda {

// The lowest bit of each flag; Python packs the same (kernels/triton/variant.py).
enum Flag : int {
#define FLAG(symbol, name, bit) symbol = bit,
#include "../contract.def"
};
enum Parameter : uint64_t {
#define PARAMETER(symbol, name) symbol,
#include "../contract.def"
};

struct Key {
  uint64_t flags;
  int64_t size;        // N; of quantized gated norms, the group's
  int64_t group_size;  // N, except for gated norms of groups; of quantized norms, the columns of a scale
  bool operator==(const Key& other) const {
    return flags == other.flags && size == other.size && group_size == other.group_size;
  }
};

struct Variant {
  int64_t min_rows, max_rows;  // the counts of rows (gated: of groups) whose plan this is
  int64_t rows_per_program;
  void* function;  // a CUfunction
  uint32_t threads, shared_bytes;
  bool dependent;  // programmatic dependent launch
  Recipe parameters;
};

class Variants {
 public:
  void add(const Key& key, const Variant& variant) {
    const std::unique_lock lock(mutex_);
    auto& held = by_key_[key];
    for (Variant& old : held)
      if (old.min_rows == variant.min_rows) {
        old = variant;
        return;
      }
    held.push_back(variant);
  }

  bool find(const Key& key, int64_t rows, Variant* found) const {
    const std::shared_lock lock(mutex_);
    const auto held = by_key_.find(key);
    if (held == by_key_.end()) return false;
    for (const Variant& variant : held->second)
      if (variant.min_rows <= rows && rows <= variant.max_rows) {
        *found = variant;
        return true;
      }
    return false;
  }

 private:
  struct Hash {
    size_t operator()(const Key& key) const {
      uint64_t h = key.flags;
      for (const int64_t value : {key.size, key.group_size}) h = (h ^ static_cast<uint64_t>(value)) * 0x9e3779b97f4a7c15u;
      return h ^ h >> 32;
    }
  };

  mutable std::shared_mutex mutex_;
  std::unordered_map<Key, std::vector<Variant>, Hash> by_key_;
};

}  // namespace serving_ops::cuda
