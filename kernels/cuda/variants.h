// The compiled kernels that this process has, by all that tells one from another. Triton compiles them; a call that finds
// its variant here never sees Python. No torch and no CUDA here.
#pragma once

#include <cstdint>
#include <mutex>
#include <shared_mutex>
#include <unordered_map>
#include <vector>

namespace serving_ops::cuda {

// What Python packs in kernels/triton/variant.py, bit for bit.
enum Flags : uint64_t {
  kGated = 1 << 0,
  kXDtype = 1,    // 2 bits at 1: a Dtype
  kWeight = 3,    // 2 bits at 3: a Parameter
  kBias = 5,      // 2 bits at 5: a Parameter
  kSecond = 1 << 7,       // has a residual, or a gate
  kWeightInFp32 = 1 << 8,  // plain norms: the weight is applied before rounding
  kGateFirst = 1 << 9,
  kSigmoid = 1 << 10,
  kFlat = 1 << 11,     // one leading dimension
  kAligned = 1 << 12,  // every row starts on 16 bytes
  kDevice = 16,        // the device's index, from here on
};
enum Parameter : uint64_t { kAbsent, kDtypeOfX, kFloat32 };

struct Key {
  uint64_t flags;
  int64_t size;        // N
  int64_t group_size;  // N but for gated norms of groups
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
