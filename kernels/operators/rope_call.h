// A call of qk_norm_rope that the kernels take: as calls.h. Those on CPU write no cache.
#pragma once

#include <charconv>
#include <cmath>

#include "calls.h"

namespace serving_ops {

struct RopeCall {
  RopeSpec spec{};
  TensorView x, positions, table;
  int64_t num_tokens;
  Heads q{}, k{}, v{};  // the last only with a cache

  struct Cache {
    TensorView keys, values, slots;
    TensorView k_scale, v_scale;  // where `is_scaled`
    bool is_scaled;
    int64_t block_size, block_stride, slot_stride, head_stride;  // of both
  };
  bool is_cached;
  Cache cache;

  Positions positions_of_tokens() const {
    return {positions.data, positions.item_bytes == 8, positions.strides[positions.num_dims - 1], positions.strides[0]};
  }

  template <class Op>
  Refusal read(const Arguments& arguments) {
    if constexpr (Op::kIsShort) return read_short<Op::kIsCached>(arguments);
    return read_all(arguments);
  }

 private:
  // qk_norm_rope(qkv, positions, cos_sin_cache, q_weight, k_weight, num_q_heads, num_kv_heads, head_dim, eps,
  // weight_offset, rotary_dim, is_neox, mrope_section, mrope_interleaved, k, v, key_cache, value_cache, slot_mapping,
  // k_scale, v_scale)
  Refusal read_all(const Arguments& arguments) {
    q.count = arguments.integer(5);
    k.count = v.count = arguments.integer(6);
    spec.norm.size = arguments.integer(7);
    if (const Refusal refusal = read_numbers(arguments.number(8), arguments.number(9), &spec.norm)) return refusal;
    if (arguments.optional_int(10, 0) < 0) return {"rotary_dim", " is negative"};
    spec.rotary_dim = arguments.optional_int(10, kOfTable);
    spec.is_neox = arguments.boolean(11);
    spec.has_sections = !arguments.is_none(12);
    spec.taking_turns = arguments.boolean(13);
    if (spec.has_sections && !arguments.integers(12, spec.section)) return kWrongSections;
    const auto given = [&](int i) { return arguments.tensor(i); };
    return read(arguments, {given(14), given(15), given(16), given(17), given(18), given(19), given(20)});
  }

  // (qkv, positions, cos_sin_cache, q_weight, k_weight, options), with a cache also (k, v, key_cache, value_cache,
  // slot_mapping): `options_text` in integrations/common/rope_text.py says what the text has.
  template <bool kIsCached>
  Refusal read_short(const Arguments& arguments) {
    int64_t numbers[kMostOptions];
    const int count = read_integers(arguments.text(5), numbers);
    spec.has_sections = count == kMostOptions;
    if (!spec.has_sections && count != kMostOptions - 3) return {"options", " are not known"};
    q.count = numbers[0];
    k.count = v.count = numbers[1];
    spec.norm.size = numbers[2];
    spec.rotary_dim = numbers[3];
    spec.is_neox = numbers[4] != 0;
    spec.taking_turns = numbers[5] != 0;
    const auto real = [](int64_t mantissa, int64_t exponent) { return std::ldexp(mantissa, static_cast<int>(exponent)); };
    if (const Refusal refusal = read_numbers(real(numbers[6], numbers[7]), real(numbers[8], numbers[9]), &spec.norm))
      return refusal;
    if (spec.has_sections) std::copy_n(numbers + 10, 3, spec.section);
    if (!kIsCached) return read(arguments, {});
    const auto given = [&](int i) { return arguments.tensor(i); };
    return read(arguments, {given(6), given(7), given(8), given(9), given(10)});
  }

  static constexpr int64_t kOfTable = -1;  // as many elements are rotated as a row of the table has
  static constexpr Refusal kWrongSections{"mrope_section", " is not three numbers with the sum rotary_dim / 2"};

  static constexpr int kMostOptions = 13;

  // How many numbers the text has, a space between two; -1 where it has another form.
  static int read_integers(std::string_view text, int64_t (&numbers)[kMostOptions]) {
    const char *next = text.data(), *const end = next + text.size();
    for (int count = 0; count < kMostOptions; ++next) {
      const auto read = std::from_chars(next, end, numbers[count++]);
      next = read.ptr;
      if (read.ec != std::errc() || (next != end && *next != ' ')) return -1;
      if (next == end) return count;
    }
    return -1;
  }

  struct Given {
    AtenTensorHandle k, v, key_cache, value_cache, slots, k_scale, v_scale;
  };

  Refusal read(const Arguments& arguments, const Given& given) {
    x = TensorView(arguments.tensor(0));
    positions = TensorView(arguments.tensor(1));
    table = TensorView(arguments.tensor(2));
    if (q.count < 1 || k.count < 1 || spec.norm.size < 1) return {"qkv", " has no heads"};
    if (x.num_dims < 2 || !x.element_type(&spec.norm.dtype)) return {"qkv", ".dtype is not float16, bfloat16 or float32"};
    // Then no product of the two overflows.
    if (std::max(q.count, k.count) > kMaxGroups / 3) return {"qkv", " has more heads than the kernels take"};
    if (spec.norm.size > x.sizes[x.num_dims - 1]) return {"qkv", " is not rows of heads"};
    num_tokens = x.sizes[0];
    Memory memory;
    memory.add("qkv", x, Memory::kWritten);
    memory.add("cos_sin_cache", table, Memory::kRead);
    memory.add("positions", positions, Memory::kRead);
    TensorView rows_of_k, rows_of_v, weights[2];
    is_cached = given.key_cache != nullptr;
    if (const Refusal refusal = read_heads(given, &rows_of_k, &rows_of_v, &memory)) return refusal;
    if (const Refusal refusal = read_table()) return refusal;
    if (const Refusal refusal = read_weights(arguments, weights, &memory)) return refusal;
    if (const Refusal refusal = read_cache(given, &memory)) return refusal;
    if (const Refusal refusal = memory.why_not()) return refusal;
    return read_positions();
  }

  Refusal read_heads(const Given& given, TensorView* rows_of_k, TensorView* rows_of_v, Memory* memory) {
    const int64_t size = spec.norm.size;
    if (given.v != nullptr && (given.k == nullptr || !is_cached)) return {"v", " is given without k or without caches"};
    if (given.k == nullptr) {
      const int64_t width = (q.count + 2 * k.count) * size, head = size * x.item_bytes;
      if (x.num_dims != 2 || x.sizes[1] != width || x.strides[1] != 1) return {"qkv", " is not rows of heads"};
      for (Heads* heads : {&q, &k, &v}) heads->token_stride = x.strides[0], heads->head_stride = size;
      q.data = x.data;
      k.data = x.data + q.count * head;
      v.data = x.data + (q.count + k.count) * head;
      return {};
    }
    if (!place(x, &q)) return {"qkv", " is not rows of heads"};
    *rows_of_k = TensorView(given.k);
    memory->add("k", *rows_of_k, Memory::kWritten);
    if (!place(*rows_of_k, &k)) return {"k", " is not rows of heads like qkv's"};
    if (!is_cached) return {};
    if (given.v == nullptr) return {"v", " is not given"};
    *rows_of_v = TensorView(given.v);
    memory->add("v", *rows_of_v, Memory::kRead);
    return place(*rows_of_v, &v) ? Refusal{} : Refusal{"v", " is not rows of heads like qkv's"};
  }

  // (num_tokens, heads * size) or (num_tokens, heads, size), the elements of a head side by side.
  bool place(const TensorView& of, Heads* heads) const {
    const int64_t size = spec.norm.size, count = heads->count;
    if (of.dtype != x.dtype || !of.on_device_of(x) || of.num_dims < 2 || of.num_dims > 3) return false;
    if (of.sizes[0] != num_tokens || of.strides[of.num_dims - 1] != 1) return false;
    if (of.num_dims == 2 ? of.sizes[1] != count * size : of.sizes[1] != count || of.sizes[2] != size) return false;
    heads->data = of.data;
    heads->token_stride = of.strides[0];
    heads->head_stride = of.num_dims == 2 ? size : of.strides[1];
    return true;
  }

  Refusal read_table() {
    const int64_t width = table.num_dims == 2 ? table.sizes[1] : -1;
    if (spec.rotary_dim == kOfTable) spec.rotary_dim = width;
    if (table.num_dims != 2 || width != spec.rotary_dim || width % 2 != 0 || width > spec.norm.size)
      return {"cos_sin_cache", " is not (positions, rotary_dim)"};
    if (!table.element_type(&spec.table_dtype) || !table.on_device_of(x) ||
        (spec.table_dtype != spec.norm.dtype && spec.table_dtype != Dtype::float32))
      return {"cos_sin_cache", ".dtype is neither qkv's nor float32"};
    if (table.strides[1] != 1) return {"cos_sin_cache", ".stride(1) is not 1"};
    if (!spec.has_sections) return spec.taking_turns ? kWrongSections : Refusal{};
    const auto [least, most] = std::minmax_element(std::begin(spec.section), std::end(spec.section));
    const bool fit = *least >= 0 && *most <= width &&
                     2 * std::accumulate(std::begin(spec.section), std::end(spec.section), int64_t{0}) == width;
    spec.has_sections = positions.num_dims == 2;
    return fit ? Refusal{} : kWrongSections;
  }

  Refusal read_weights(const Arguments& arguments, TensorView (&weights)[2], Memory* memory) {
    const AtenTensorHandle of_q = arguments.tensor(3), of_k = arguments.tensor(4);
    if ((of_q == nullptr) != (of_k == nullptr)) return {"q_weight", " and k_weight are not given together"};
    if (of_q == nullptr) return {};
    weights[0] = TensorView(of_q);
    weights[1] = TensorView(of_k);
    memory->add("q_weight", weights[0], Memory::kRead);
    memory->add("k_weight", weights[1], Memory::kRead);
    const auto read = [this](const char* name, const TensorView& weight, Param* param) {
      return weight.read_vector(name, spec.norm.size, x, spec.norm.dtype, param);
    };
    if (const Refusal refusal = read("q_weight", weights[0], &q.weight)) return refusal;
    if (const Refusal refusal = read("k_weight", weights[1], &k.weight)) return refusal;
    spec.norm.weight = q.weight;
    const bool alike = weights[0].dtype == weights[1].dtype || !x.on_cuda();
    return alike ? Refusal{} : Refusal{"k_weight", ".dtype is not q_weight's"};
  }

  Refusal read_cache(const Given& given, Memory* memory) {
    if (is_cached != (given.value_cache != nullptr) || is_cached != (given.slots != nullptr) ||
        (given.k_scale != nullptr) != (given.v_scale != nullptr) || (given.k_scale != nullptr && !is_cached))
      return {"key_cache", " and what belongs to it are not given together"};
    if (!is_cached) return {};
    if (!x.on_cuda()) return {"key_cache", " has no kernel on CPU"};
    cache.keys = TensorView(given.key_cache);
    cache.values = TensorView(given.value_cache);
    cache.slots = TensorView(given.slots);
    memory->add("key_cache", cache.keys, Memory::kWritten);
    memory->add("value_cache", cache.values, Memory::kWritten);
    memory->add("slot_mapping", cache.slots, Memory::kRead);
    const TensorView &keys = cache.keys, &slots = cache.slots;
    if (!is_cache(keys) || !is_cache(cache.values)) return {"key_cache", " is not (..., num_kv_heads, head_dim) like qkv"};
    for (int64_t d = 0; d < keys.num_dims; ++d)
      if (cache.values.num_dims != keys.num_dims || cache.values.sizes[d] != keys.sizes[d] ||
          cache.values.strides[d] != keys.strides[d] || cache.values.dtype != keys.dtype)
        return {"value_cache", " is not like key_cache"};
    if (slots.num_dims != 1 || slots.sizes[0] > num_tokens || !is_index(slots) || (slots.strides[0] != 1 && slots.sizes[0] > 1))
      return {"slot_mapping", " is not (n,) side by side"};
    const bool has_blocks = keys.num_dims == 4;
    cache.block_size = has_blocks ? keys.sizes[1] : 1;
    cache.block_stride = keys.strides[0];
    cache.slot_stride = has_blocks ? keys.strides[1] : 0;
    cache.head_stride = keys.strides[keys.num_dims - 2];
    if (keys.sizes[0] * cache.block_size > kMaxSlots) return {"key_cache", " has more slots than the kernels count"};
    return read_scales(given, memory);
  }
  // (num_blocks, block_size, num_kv_heads, head_dim) or (num_slots, num_kv_heads, head_dim), in x's dtype or FP8.
  bool is_cache(const TensorView& of) const {
    const int64_t last = of.num_dims - 1;
    return (of.num_dims == 3 || of.num_dims == 4) && of.sizes[last - 1] == k.count && of.sizes[last] == spec.norm.size &&
           of.strides[last] == 1 && (of.dtype == x.dtype || of.is_fp8()) && of.on_device_of(x);
  }
  Refusal read_scales(const Given& given, Memory* memory) {
    cache.is_scaled = given.k_scale != nullptr;
    if (!cache.is_scaled) return {};
    cache.k_scale = TensorView(given.k_scale);
    cache.v_scale = TensorView(given.v_scale);
    memory->add("k_scale", cache.k_scale, Memory::kRead);
    memory->add("v_scale", cache.v_scale, Memory::kRead);
    const bool fit = cache.keys.is_fp8() && is_number(cache.k_scale) && is_number(cache.v_scale);
    return fit ? Refusal{} : Refusal{"k_scale", " and v_scale are not one number each, of FP8 caches"};
  }
  // In fp32.
  bool is_number(const TensorView& of) const {
    Dtype dtype;
    bool one = of.element_type(&dtype) && dtype == Dtype::float32 && of.on_device_of(x);
    for (int64_t d = 0; d < of.num_dims; ++d) one = one && of.sizes[d] == 1;
    return one;
  }
  bool is_index(const TensorView& of) const {
    static const int32_t int32 = aoti_torch_dtype_int32(), int64 = aoti_torch_dtype_int64();
    return (of.dtype == int32 || of.dtype == int64) && of.on_device_of(x);
  }

  Refusal read_positions() const {
    const int64_t last = positions.num_dims - 1;
    if (positions.num_dims != (spec.has_sections ? 2 : 1) || positions.sizes[last] != num_tokens ||
        (spec.has_sections && positions.sizes[0] != 3) || !is_index(positions))
      return {"positions", " is not (num_tokens,) of int32 or int64, or three of them with mrope_section"};
    if (x.on_cuda()) return {};
    const Positions position = positions_of_tokens();
    for (int64_t axis = 0; axis < (spec.has_sections ? 3 : 1); ++axis)
      for (int64_t token = 0; token < num_tokens; ++token)
        if (const int64_t found = position(token, axis); found < 0 || found >= table.sizes[0])
          return {"positions", " are not all in the table"};
    return {};
  }
};

}  // namespace serving_ops
