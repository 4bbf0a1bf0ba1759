#include "run.h"

#include <atomic>
#include <stdexcept>
#include <string>

#include "../operators/count.h"
#include "driver.h"

namespace serving_ops::cuda {
namespace {

constexpr uint64_t kAlignment = 16;  // bytes

template <int Operands>
bool takes(const TensorView& x, const RowSpace<Operands>& space) {
  return x.on_cuda() && space.num_rows() <= kMaxRows && space.num_dims() <= 2;
}

uint64_t flag(bool on, Flag bit) { return static_cast<uint64_t>(on) << bit; }

uint64_t parameter_flags(const Param& param, Dtype x_dtype, Flag bit) {
  if (param.data == nullptr) return 0;
  const Parameter kind = param.dtype == x_dtype ? kDtypeOfX : kFloat32;
  return static_cast<uint64_t>(kind) << bit;
}

// Of the dtype and the rows. `parameters` are the addresses of weight and bias, ored together.
template <int Operands>
uint64_t row_flags(const RowSpace<Operands>& space, const TensorView* const (&tensors)[Operands], Dtype dtype,
                   int64_t group_size, uint64_t parameters) {
  uint64_t starts = parameters | static_cast<uint64_t>(group_size * element_bytes(dtype));
  for (int k = 0; k < Operands; ++k) {
    // Quantized rows, of one byte an element, start on as many elements as the others.
    const bool quantized = tensors[k]->item_bytes() == 1;
    const int64_t bytes = quantized ? element_bytes(dtype) : tensors[k]->item_bytes();
    starts |= reinterpret_cast<uintptr_t>(tensors[k]->data) * (quantized ? bytes : 1);
    // Of single rows too: a row of a batch must be read the same way alone.
    for (int64_t d = 0; d + 1 < tensors[k]->num_dims; ++d) starts |= static_cast<uint64_t>(tensors[k]->strides[d] * bytes);
  }
  return static_cast<uint64_t>(dtype) << kXDtype | flag(space.num_dims() < 2, kFlat) |
         flag(starts % kAlignment == 0, kAligned);
}

uint64_t norm_flags(const NormSpec& spec, bool has_residual) {
  const bool weighted = spec.weight.data != nullptr;
  const bool in_fp32 = weighted && (spec.weight.dtype != spec.dtype || spec.weight_offset != 0.0f);
  return parameter_flags(spec.weight, spec.dtype, kWeight) | flag(has_residual, kSecond) | flag(in_fp32, kWeightInFp32) |
         flag(spec.fp32_residual, kResidualInFp32);
}

uint64_t gated_flags(const GatedNormSpec& spec, bool has_gate) {
  return flag(true, kGated) | parameter_flags(spec.weight, spec.dtype, kWeight) |
         parameter_flags(spec.bias, spec.dtype, kBias) | flag(has_gate, kSecond) |
         flag(has_gate && !spec.norm_before_gate, kGateFirst) | flag(has_gate && !spec.silu, kSigmoid);
}

uint64_t quant_flags(const QuantResult& result) {
  return flag(true, kQuantized) | flag(result.format.int8, kInt8) | flag(result.has_normed, kNormed) |
         static_cast<uint64_t>(result.format.scale_form) << kScaleForm;
}

uint64_t address(const Param& param) { return reinterpret_cast<uintptr_t>(param.data); }

template <int Operands>
Rows rows_of(const TensorView& tensor, const RowSpace<Operands>& space, int operand) {
  return {tensor.data, space.stride(1, operand), space.stride(0, operand)};
}

template <int Operands>
void count_rows(const RowSpace<Operands>& space, Fields* fields) {
  fields->num_rows = static_cast<int32_t>(space.num_rows());
  fields->inner = static_cast<int32_t>(space.num_dims() < 2 ? space.num_rows() : space.size(0));
}

// A tensor that is absent is x to the kernels, and not read.
pointer address_or(const Param& param, const TensorView& x) { return param.data != nullptr ? param.data : x.data; }

void set_norm(const NormSpec& spec, const TensorView& x, Fields* fields) {
  fields->weight_ptr = address_or(spec.weight, x);
  fields->eps = static_cast<float>(spec.eps);
  fields->weight_offset = spec.weight_offset;
}

void set_gated(const GatedNormSpec& spec, const TensorView& x, Fields* fields) {
  fields->weight_ptr = address_or(spec.weight, x);
  fields->bias_ptr = address_or(spec.bias, x);
  fields->eps = static_cast<float>(spec.eps);
}

// A stride counts where something is apart by it.
int64_t stride_of(int64_t size, int64_t stride) { return size > 1 ? stride : 0; }

// Every half of a head, of a row of the table and of a weight; and heads in the caches on as many elements.
bool starts_aligned(const RopeCall& call) {
  const RopeSpec& spec = call.spec;
  const int64_t bytes = element_bytes(spec.norm.dtype), half = spec.rotary_dim / 2;
  uint64_t starts = 0;
  const auto add = [&starts](const void* data, int64_t elements, int64_t item_bytes) {
    starts |= reinterpret_cast<uintptr_t>(data) | static_cast<uint64_t>(elements * item_bytes);
  };
  const auto add_heads = [&](const RopeCall::Place& heads, int64_t count) {
    add(heads.data, half | stride_of(call.num_tokens, heads.token_stride) | stride_of(count, heads.head_stride), bytes);
  };
  add_heads(call.q_heads, call.num_q_heads);
  add_heads(call.k_heads, call.num_kv_heads);
  add(call.table.data, half | stride_of(call.table.sizes[0], call.table.strides[0]), element_bytes(spec.table_dtype));
  for (const Param& weight : {spec.norm.weight, call.k_weight})
    if (weight.data != nullptr) add(weight.data, half, element_bytes(weight.dtype));
  if (!call.is_cached) return starts % kAlignment == 0;
  add_heads(call.v_heads, call.num_kv_heads);
  for (const TensorView* cache : {&call.cache.keys, &call.cache.values}) {
    int64_t elements = reinterpret_cast<uintptr_t>(cache->data) / cache->item_bytes();
    for (int64_t d = 0; d + 1 < cache->num_dims; ++d) elements |= stride_of(cache->sizes[d], cache->strides[d]);
    add(nullptr, elements, bytes);
  }
  return starts % kAlignment == 0;
}

uint64_t rope_flags(const RopeCall& call) {
  const RopeSpec& spec = call.spec;
  const RopeCall::Cache& cache = call.cache;
  return flag(true, kRope) | static_cast<uint64_t>(spec.norm.dtype) << kXDtype | norm_flags(spec.norm, false) |
         flag(!spec.is_neox, kInterleaved) | flag(spec.has_sections && spec.taking_turns, kTakingTurns) |
         flag(spec.table_dtype != spec.norm.dtype, kTableInFp32) |
         flag(call.positions.item_bytes() == 8, kLongPositions) | flag(call.is_cached, kCached) |
         (call.is_cached ? flag(cache.slots.item_bytes() == 8, kLongSlots) | flag(cache.keys.is_fp8(), kCacheInFp8) |
                               flag(cache.is_scaled, kScaled)
                         : 0) |
         flag(starts_aligned(call), kAligned);
}

// What tells kernels of one head apart: the pairs that are rotated, and those of the second and the third position.
int64_t pairs_of(const RopeSpec& spec) {
  const int64_t sections = spec.has_sections ? (spec.section[1] + 1) << 16 | (spec.section[2] + 1) << 32 : 0;
  return spec.rotary_dim / 2 | sections;
}

// The rows of `normed` and `q` are the third and the fourth of the space.
void set_result(const QuantResult& result, const RowSpace<4>& space, Fields* fields) {
  fields->normed = rows_of(result.normed, space, 2);
  fields->q = rows_of(result.q, space, 3);
  fields->scales_ptr = result.scales.data;
  fields->scales_row_stride = result.scales_row_stride;
  fields->scales_group_stride = result.scales_group_stride;
}

Rows rows_of(const RopeCall::Place& heads) { return {heads.data, heads.token_stride, heads.head_stride}; }

void set_rope(const RopeCall& call, Fields* fields) {
  const TensorView &x = call.x, &positions = call.positions;
  fields->q = rows_of(call.q_heads);
  fields->k = rows_of(call.k_heads);
  fields->positions_ptr = positions.data;
  fields->positions_axis_stride = call.spec.has_sections ? positions.strides[0] : 0;
  fields->positions_token_stride = positions.strides[positions.num_dims - 1];
  fields->table_ptr = call.table.data;
  fields->table_row_stride = call.table.strides[0];
  fields->q_weight_ptr = address_or(call.spec.norm.weight, x);
  fields->k_weight_ptr = address_or(call.k_weight, x);
  fields->num_q_heads = static_cast<int32_t>(call.num_q_heads);
  fields->num_kv_heads = static_cast<int32_t>(call.num_kv_heads);
  fields->eps = static_cast<float>(call.spec.norm.eps);
  fields->weight_offset = call.spec.norm.weight_offset;
}

void set_cache(const RopeCall& call, Fields* fields) {
  const RopeCall::Cache& cache = call.cache;
  const bool cached = call.is_cached, scaled = cached && cache.is_scaled;
  fields->v = cached ? rows_of(call.v_heads) : Rows{call.x.data, 0, 0};
  fields->key_cache_ptr = cached ? cache.keys.data : call.x.data;
  fields->value_cache_ptr = cached ? cache.values.data : call.x.data;
  fields->slots_ptr = cached ? cache.slots.data : call.positions.data;
  fields->k_scale_ptr = scaled ? cache.k_scale.data : call.x.data;
  fields->v_scale_ptr = scaled ? cache.v_scale.data : call.x.data;
  fields->num_slots = cached ? static_cast<int32_t>(cache.slots.sizes[0]) : 0;
  fields->block_size = cached ? static_cast<int32_t>(cache.block_size) : 1;
  fields->cache_block_stride = cached ? cache.block_stride : 0;
  fields->cache_slot_stride = cached ? cache.slot_stride : 0;
  fields->cache_head_stride = cached ? cache.head_stride : 0;
}

// The context of a device where torch has its tensors, kept for as long as the process lives; null where there is none.
void* primary_context(const Driver& driver, int32_t device) {
  constexpr int kMaxDevices = 64;
  static std::atomic<void*> contexts[kMaxDevices];
  if (device < 0 || device >= kMaxDevices) return nullptr;
  void* context = contexts[device].load(std::memory_order_acquire);
  if (context == nullptr && driver.retain_primary_context(&context, device) == 0)
    contexts[device].store(context, std::memory_order_release);
  return context;
}

// A launch on x's device, which is the thread's current one for as long as this lives.
class Launch {
 public:
  Launch() = default;
  Launch(const Launch&) = delete;
  Launch& operator=(const Launch&) = delete;
  ~Launch() {
    void* context;
    if (switched_) driver_->pop_context(&context);
  }

  // False where there is no driver, or no context.
  bool prepare(const TensorView& x) {
    driver_ = driver();
    device_ = x.device_index();
    return driver_ != nullptr && make_current() && driver_->current_stream(device_, &stream_) == AOTI_TORCH_SUCCESS;
  }

  // size and group_size: of the key. rows: those of the plan.
  bool find(uint64_t flags, int64_t size, int64_t group_size, int64_t rows) {
    const Key key{flags | static_cast<uint64_t>(device_) << kDevice, size, group_size};
    return variants().find(key, rows, &variant_);
  }

  // How many programs that many rows take.
  uint32_t programs(int64_t rows) const {
    return static_cast<uint32_t>((rows + variant_.rows_per_program - 1) / variant_.rows_per_program);
  }

  void operator()(Fields& fields, uint32_t grid_x, uint32_t grid_y) const {
    fields.scratch = nullptr;
    void* parameters[Recipe::kMaxParameters];
    variant_.parameters.point(&fields, parameters);
    LaunchAttribute dependent{kProgrammaticStreamSerialization, 0, {1}};
    LaunchConfig config{};
    config.grid_x = grid_x;
    config.grid_y = grid_y;
    config.grid_z = config.block_y = config.block_z = 1;
    config.block_x = variant_.threads;
    config.shared_bytes = variant_.shared_bytes;
    config.stream = stream_;
    config.attributes = &dependent;
    config.num_attributes = variant_.dependent ? 1 : 0;
    const int error = driver_->launch(&config, variant_.function, parameters, nullptr);
    if (error != 0) throw std::runtime_error("serving_ops: cuLaunchKernelEx failed with CUresult " + std::to_string(error));
  }

 private:
  // A thread that has not used CUDA yet has no current device.
  bool make_current() {
    int current;
    if (driver_->current_device(&current) == 0 && current == device_) return true;
    void* context = primary_context(*driver_, device_);
    switched_ = context != nullptr && driver_->push_context(context) == 0;
    return switched_;
  }

  const Driver* driver_ = nullptr;
  bool switched_ = false;
  int32_t device_;
  void* stream_;
  Variant variant_;
};

// Runs a call over rows where its kernel is compiled. groups: of a row. set(fields): beside the rows of x.
template <int Operands, class Set>
bool run_rows(Op op, const TensorView& x, const RowSpace<Operands>& space, const Key& key, int64_t groups, const Set& set) {
  if (!takes(x, space)) return false;
  if (const int64_t rows = space.num_rows(); rows > 0) {
    Launch launch;
    if (!launch.prepare(x) || !launch.find(key.flags, key.size, key.group_size, rows * groups)) return false;
    Fields fields;
    count_rows(space, &fields);
    fields.x = rows_of(x, space, 0);
    set(&fields);
    launch(fields, launch.programs(rows), static_cast<uint32_t>(groups));
  }
  count(op);
  return true;
}

}  // namespace

Variants& variants() {
  static Variants of_process;
  return of_process;
}

bool run(const NormCall& call) {
  const NormSpec& spec = call.spec;
  const bool fused = call.op == kFusedAddRmsNorm;
  const uint64_t flags =
      row_flags<2>(call.space, {&call.x, &call.other}, spec.dtype, spec.size, address(spec.weight)) |
      norm_flags(spec, fused);
  return run_rows(call.op, call.x, call.space, {flags, spec.size, spec.size}, 1, [&](Fields* fields) {
    const Rows x = fields->x, other = rows_of(call.other, call.space, 1);
    set_norm(spec, call.x, fields);
    fields->residual = fused ? other : x;
    fields->out = fused ? x : other;
    fields->total_ptr = fields->residual.ptr;
  });
}

bool run(const GatedCall& call) {
  const GatedNormSpec& spec = call.spec;
  const uint64_t flags = row_flags<3>(call.space, {&call.x, &call.z, &call.out}, spec.dtype, spec.group_size,
                                      address(spec.weight) | address(spec.bias)) |
                         gated_flags(spec, call.has_gate);
  const Key key{flags, spec.size, spec.group_size};
  return run_rows(kRmsNormGated, call.x, call.space, key, spec.size / spec.group_size, [&](Fields* fields) {
    set_gated(spec, call.x, fields);
    fields->z = rows_of(call.z, call.space, 1);
    fields->out = rows_of(call.out, call.space, 2);
  });
}

bool run(const NormQuantCall& call) {
  const NormSpec& spec = call.spec;
  const QuantResult& result = call.result;
  const uint64_t flags =
      row_flags<4>(call.space, {&call.x, &call.residual, &result.normed, &result.q}, spec.dtype, spec.size,
                   address(spec.weight)) |
      norm_flags(spec, call.op == kFusedAddRmsNormQuant) | quant_flags(result);
  const Key key{flags, spec.size, result.columns_of_a_scale()};
  return run_rows(call.op, call.x, call.space, key, 1, [&](Fields* fields) {
    set_norm(spec, call.x, fields);
    fields->residual = rows_of(call.residual, call.space, 1);
    set_result(result, call.space, fields);
  });
}

bool run(const GatedQuantCall& call) {
  const GatedNormSpec& spec = call.spec;
  const QuantResult& result = call.result;
  const uint64_t flags = row_flags<4>(call.space, {&call.x, &call.z, &result.normed, &result.q}, spec.dtype,
                                      spec.group_size, address(spec.weight) | address(spec.bias)) |
                         gated_flags(spec, call.has_gate) | quant_flags(result);
  const Key key{flags, spec.group_size, result.columns_of_a_scale()};
  return run_rows(kRmsNormGatedQuant, call.x, call.space, key, spec.size / spec.group_size, [&](Fields* fields) {
    set_gated(spec, call.x, fields);
    fields->z = rows_of(call.z, call.space, 1);
    set_result(result, call.space, fields);
  });
}

bool run(const RopeCall& call) {
  if (!call.x.on_cuda() || call.num_tokens > kMaxRows) return false;
  if (call.num_tokens == 0) return count(kQkNormRope), true;
  const int64_t heads = call.num_q_heads + call.num_kv_heads;
  Launch launch;
  if (!launch.prepare(call.x) ||
      !launch.find(rope_flags(call), call.spec.norm.size, pairs_of(call.spec), call.num_tokens * heads))
    return false;

  Fields fields;
  set_rope(call, &fields);
  set_cache(call, &fields);
  const uint32_t of_kv = launch.programs(call.num_kv_heads);
  const uint32_t blocks = launch.programs(call.num_q_heads) + (call.is_cached ? 2 : 1) * of_kv;
  launch(fields, static_cast<uint32_t>(call.num_tokens), blocks);
  count(kQkNormRope);
  return true;
}

}  // namespace serving_ops::cuda
