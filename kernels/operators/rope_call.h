// A call of qk_norm_rope that the CPU kernels take: as calls.h.
#pragma once

#include "calls.h"

namespace serving_ops {

struct RopeCall {
  RopeSpec spec{};
  TensorView x, k, positions, table;  // k is x where it lies in it
  Param q_weight, k_weight;
  int64_t num_tokens, num_q_heads, num_kv_heads;

  // Heads of a tensor, in elements.
  struct Place {
    char* data;
    int64_t token_stride, head_stride, span;  // of one token's heads
  };
  Place q_heads, k_heads;

  // qk_norm_rope(qkv, positions, cos_sin_cache, q_weight, k_weight, num_q_heads, num_kv_heads, head_dim, eps,
  // weight_offset, rotary_dim, is_neox, mrope_section, mrope_interleaved, k, v, key_cache, value_cache, slot_mapping,
  // k_scale, v_scale)
  static constexpr char kKinds[] = "tttoo.....i.l.ooooooo";
  Refusal read(const Arguments& arguments) {
    for (int i = 15; i <= 20; ++i)
      if (arguments.optional_tensor(i) != nullptr) return {"", "v and caches have no kernel on CPU"};
    if (!arguments.is_none(12)) return {"", "MRoPE has no kernel on CPU"};
    x = TensorView(arguments.tensor(0));
    positions = TensorView(arguments.tensor(1));
    table = TensorView(arguments.tensor(2));
    num_q_heads = arguments.integer(5);
    num_kv_heads = arguments.integer(6);
    spec.norm.size = arguments.integer(7);
    spec.norm.eps = arguments.number(8);
    spec.norm.weight_offset = static_cast<float>(arguments.number(9));
    spec.is_neox = arguments.boolean(11);
    if (num_q_heads < 1 || num_kv_heads < 1 || spec.norm.size < 1) return {"qkv", " has no heads"};
    if (x.num_dims < 2 || !x.element_type(&spec.norm.dtype)) return {"qkv", ".dtype is not float16, bfloat16 or float32"};
    num_tokens = x.sizes[0];
    if (const Refusal refusal = read_heads(arguments.optional_tensor(14))) return refusal;
    if (const Refusal refusal = read_table(arguments.optional_int(10, table.num_dims == 2 ? table.sizes[1] : -1)))
      return refusal;
    if (const Refusal refusal = read_weights(arguments.optional_tensor(3), arguments.optional_tensor(4))) return refusal;
    return read_positions();
  }

 private:
  Refusal read_heads(AtenTensorHandle separate) {
    const int64_t size = spec.norm.size;
    if (separate == nullptr) {
      const int64_t width = (num_q_heads + 2 * num_kv_heads) * size;
      if (x.num_dims != 2 || x.sizes[1] != width || x.strides[1] != 1) return {"qkv", " is not rows of heads"};
      k = x;
      q_heads = {x.data, x.strides[0], size, num_q_heads * size};
      k_heads = {x.data + num_q_heads * size * element_bytes(spec.norm.dtype), x.strides[0], size, num_kv_heads * size};
    } else {
      k = TensorView(separate);
      if (k.dtype != x.dtype || !k.on_device_of(x)) return {"k", " is not like qkv"};
      if (!place(x, num_q_heads, &q_heads)) return {"qkv", " is not rows of heads"};
      if (!place(k, num_kv_heads, &k_heads)) return {"k", " is not rows of heads"};
    }
    if (!x.is_writable()) return {"qkv", kMayOverlapItself};
    if (!k.is_writable()) return {"k", kMayOverlapItself};
    return separate != nullptr && share_memory() ? Refusal{"k", kMayBeWritten} : Refusal{};
  }

  // (num_tokens, heads * size) or (num_tokens, heads, size), the elements of a head side by side.
  bool place(const TensorView& of, int64_t heads, Place* place) const {
    const int64_t size = spec.norm.size;
    if (of.num_dims < 2 || of.num_dims > 3 || of.sizes[0] != num_tokens || of.strides[of.num_dims - 1] != 1) return false;
    if (of.num_dims == 2 ? of.sizes[1] != heads * size : of.sizes[1] != heads || of.sizes[2] != size) return false;
    const int64_t step = of.num_dims == 2 ? size : of.strides[1];
    *place = {of.data, of.strides[0], step, (heads - 1) * step + size};
    return true;
  }

  // Of q and k that are given apart, but may be columns of one tensor.
  bool share_memory() const {
    const int64_t bytes = element_bytes(spec.norm.dtype), distance = (k_heads.data - q_heads.data) / bytes;
    if (x.data >= k.end() || k.data >= x.end()) return false;
    const int64_t period = q_heads.token_stride;
    if (num_tokens < 2 || period != k_heads.token_stride || period < 1) return true;
    const int64_t column = (distance % period + period) % period;
    return column < q_heads.span || column > period - k_heads.span;
  }

  Refusal read_table(int64_t rotary_dim) {
    spec.rotary_dim = rotary_dim;
    if (table.num_dims != 2 || table.sizes[1] != rotary_dim || rotary_dim % 2 != 0 || rotary_dim > spec.norm.size)
      return {"cos_sin_cache", " is not (positions, rotary_dim)"};
    if (!table.element_type(&spec.table_dtype) || !table.on_device_of(x) ||
        (spec.table_dtype != spec.norm.dtype && spec.table_dtype != Dtype::float32))
      return {"cos_sin_cache", ".dtype is neither qkv's nor float32"};
    if (table.strides[1] != 1) return {"cos_sin_cache", ".stride(1) is not 1"};
    return is_written(table) ? Refusal{"cos_sin_cache", kMayBeWritten} : Refusal{};
  }

  Refusal read_weights(AtenTensorHandle of_q, AtenTensorHandle of_k) {
    if ((of_q == nullptr) != (of_k == nullptr)) return {"q_weight", " and k_weight are not given together"};
    if (of_q == nullptr) return {};
    if (const Refusal refusal = read_weight("q_weight", TensorView(of_q), &q_weight)) return refusal;
    return read_weight("k_weight", TensorView(of_k), &k_weight);
  }
  Refusal read_weight(const char* name, const TensorView& view, Param* param) const {
    if (const Refusal refusal = view.read_vector(name, spec.norm.size, x, spec.norm.dtype, param)) return refusal;
    return is_written(view) ? Refusal{name, kMayBeWritten} : Refusal{};
  }

  Refusal read_positions() const {
    static const int32_t int32 = aoti_torch_dtype_int32(), int64 = aoti_torch_dtype_int64();
    if (positions.num_dims != 1 || positions.sizes[0] != num_tokens || !positions.on_device_of(x))
      return {"positions", " is not (num_tokens,)"};
    if (positions.dtype != int32 && positions.dtype != int64) return {"positions", ".dtype is not int32 or int64"};
    if (is_written(positions)) return {"positions", kMayBeWritten};
    for (int64_t token = 0; token < num_tokens; ++token)
      if (position(token) < 0 || position(token) >= table.sizes[0]) return {"positions", " are not all in the table"};
    return {};
  }
  int64_t position(int64_t token) const {
    const int64_t i = token * positions.strides[0];
    return positions.item_bytes() == 8 ? reinterpret_cast<const int64_t*>(positions.data)[i]
                                       : reinterpret_cast<const int32_t*>(positions.data)[i];
  }

  bool is_written(const TensorView& view) const { return view.overlaps(x) || view.overlaps(k); }
};

}  // namespace serving_ops
