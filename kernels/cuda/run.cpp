#include "run.h"

#include <atomic>
#include <stdexcept>
#include <string>

#include "driver.h"

namespace serving_ops::cuda {
namespace {

constexpr uint64_t kAlignment = 16;  // bytes

uint64_t flag(bool on, Flag bit) { return static_cast<uint64_t>(on) << bit; }

uint64_t parameter_flags(const Param& param, Dtype x_dtype, Flag bit) {
  if (param.data == nullptr) return 0;
  const Parameter kind = param.dtype == x_dtype ? kDtypeOfX : kFloat32;
  return static_cast<uint64_t>(kind) << bit;
}

// Of the rows' dtype, and of what a plain norm does with its weight.
uint64_t weight_flags(const NormSpec& spec) {
  const bool in_fp32 = spec.weight.data != nullptr && (spec.weight.dtype != spec.dtype || spec.weight_offset != 0.0f);
  return static_cast<uint64_t>(spec.dtype) << kXDtype | parameter_flags(spec.weight, spec.dtype, kWeight) |
         flag(in_fp32, kWeightInFp32);
}

uint64_t address(const Param& param) { return reinterpret_cast<uintptr_t>(param.data); }

// Every row and every group of it, weight and bias.
bool starts_aligned(const NormCall& call) {
  const NormSpec& spec = call.spec;
  const int64_t bytes_of_x = element_bytes(spec.dtype);
  uint64_t starts = address(spec.weight) | address(spec.bias) | static_cast<uint64_t>(spec.group_size * bytes_of_x);
  for (const TensorView* tensor : {&call.x, &call.second, &call.earlier, &call.normed, &call.result.q}) {
    // Quantized rows, of one byte an element, start on as many elements as the others.
    const bool quantized = tensor->item_bytes == 1;
    const int64_t bytes = quantized ? bytes_of_x : tensor->item_bytes;
    starts |= reinterpret_cast<uintptr_t>(tensor->data) * (quantized ? bytes : 1);
    // Of single rows too: a row of a batch must be read the same way alone.
    for (int64_t d = 0; d + 1 < tensor->num_dims; ++d) starts |= static_cast<uint64_t>(tensor->strides[d] * bytes);
  }
  return starts % kAlignment == 0;
}

uint64_t norm_flags(const NormCall& call) {
  const NormSpec& spec = call.spec;
  const QuantFormat& format = call.result.format;
  uint64_t flags = weight_flags(spec) | flag(call.has_second, kSecond) | flag(call.space.num_dims() < 2, kFlat) |
                   flag(starts_aligned(call), kAligned) | flag(spec.fp32_residual, kResidualInFp32) |
                   flag(call.op == kRmsNormOfSum, kDropsSum) | flag(call.op == kFusedAddTwoRmsNorm, kEarlier);
  if (call.is_gated)
    flags = (flags & ~flag(true, kWeightInFp32)) | flag(true, kGated) | parameter_flags(spec.bias, spec.dtype, kBias) |
            flag(call.has_second && !spec.norm_before_gate, kGateFirst) | flag(call.has_second && !spec.silu, kSigmoid);
  if (call.is_quantized)
    flags |= flag(true, kQuantized) | flag(format.int8, kInt8) | flag(call.has_normed, kNormed) |
             static_cast<uint64_t>(format.scale_form) << kScaleForm;
  return flags;
}

Key key_of(const NormCall& call) {
  const NormSpec& spec = call.spec;
  return {norm_flags(call), call.is_gated && call.is_quantized ? spec.group_size : spec.size,
          call.is_quantized ? call.result.columns_of_a_scale() : spec.group_size};
}

// A parameter that is absent is x to the kernels, and not read.
pointer address_or(const Param& param, const TensorView& x) { return param.data != nullptr ? param.data : x.data; }

void set_norm(const NormCall& call, Fields* fields) {
  const NormSpec& spec = call.spec;
  const RowSpace<4>& space = call.space;
  const auto rows = [&space](const TensorView& tensor, int operand) {
    return Rows{tensor.data, space.stride(1, operand), space.stride(0, operand)};
  };
  fields->x = rows(call.x, 0);
  fields->residual = fields->z = rows(call.second, 1);
  fields->out = fields->normed = rows(call.normed, 2);
  fields->q = rows(call.result.q, 3);
  fields->total_ptr = call.second.data;
  fields->earlier_ptr = call.earlier.data;
  fields->weight_ptr = address_or(spec.weight, call.x);
  fields->bias_ptr = address_or(spec.bias, call.x);
  fields->eps = static_cast<float>(spec.eps);
  fields->weight_offset = spec.weight_offset;
  fields->num_rows = static_cast<int32_t>(space.num_rows());
  fields->inner = static_cast<int32_t>(space.num_dims() < 2 ? space.num_rows() : space.size(0));
  if (!call.is_quantized) return;
  fields->scales_ptr = call.result.scales.data;
  fields->scales_row_stride = call.result.scales_row_stride;
  fields->scales_group_stride = call.result.scales_group_stride;
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
  const auto add_heads = [&](const Heads& of) {
    add(of.data, half | stride_of(call.num_tokens, of.token_stride) | stride_of(of.count, of.head_stride), bytes);
    if (of.weight.data != nullptr) add(of.weight.data, half, element_bytes(of.weight.dtype));
  };
  add_heads(call.q);
  add_heads(call.k);
  add(call.table.data, half | stride_of(call.table.sizes[0], call.table.strides[0]), element_bytes(spec.table_dtype));
  if (!call.is_cached) return starts % kAlignment == 0;
  add_heads(call.v);
  for (const TensorView* cache : {&call.cache.keys, &call.cache.values}) {
    int64_t elements = reinterpret_cast<uintptr_t>(cache->data) / cache->item_bytes;
    for (int64_t d = 0; d + 1 < cache->num_dims; ++d) elements |= stride_of(cache->sizes[d], cache->strides[d]);
    add(nullptr, elements, bytes);
  }
  return starts % kAlignment == 0;
}

uint64_t rope_flags(const RopeCall& call) {
  const RopeSpec& spec = call.spec;
  const RopeCall::Cache& cache = call.cache;
  return flag(true, kRope) | weight_flags(spec.norm) | flag(!spec.is_neox, kInterleaved) |
         flag(spec.has_sections && spec.taking_turns, kTakingTurns) |
         flag(spec.table_dtype != spec.norm.dtype, kTableInFp32) |
         flag(call.positions.item_bytes == 8, kLongPositions) | flag(call.is_cached, kCached) |
         (call.is_cached ? flag(cache.slots.item_bytes == 8, kLongSlots) | flag(cache.keys.is_fp8(), kCacheInFp8) |
                               flag(cache.is_scaled, kScaled)
                         : 0) |
         flag(starts_aligned(call), kAligned);
}

// What tells kernels of one head apart: the pairs that are rotated, and those of the second and the third position.
int64_t pairs_of(const RopeSpec& spec) {
  const int64_t sections = spec.has_sections ? (spec.section[1] + 1) << 16 | (spec.section[2] + 1) << 32 : 0;
  return spec.rotary_dim / 2 | sections;
}

Rows rows_of(const Heads& heads) { return {heads.data, heads.token_stride, heads.head_stride}; }

void set_rope(const RopeCall& call, Fields* fields) {
  const TensorView &x = call.x, &positions = call.positions;
  fields->q = rows_of(call.q);
  fields->k = rows_of(call.k);
  fields->positions_ptr = positions.data;
  fields->positions_axis_stride = call.spec.has_sections ? positions.strides[0] : 0;
  fields->positions_token_stride = positions.strides[positions.num_dims - 1];
  fields->table_ptr = call.table.data;
  fields->table_row_stride = call.table.strides[0];
  fields->q_weight_ptr = address_or(call.q.weight, x);
  fields->k_weight_ptr = address_or(call.k.weight, x);
  fields->num_q_heads = static_cast<int32_t>(call.q.count);
  fields->num_kv_heads = static_cast<int32_t>(call.k.count);
  fields->eps = static_cast<float>(call.spec.norm.eps);
  fields->weight_offset = call.spec.norm.weight_offset;
}

void set_cache(const RopeCall& call, Fields* fields) {
  const RopeCall::Cache& cache = call.cache;
  const bool cached = call.is_cached, scaled = cached && cache.is_scaled;
  fields->v = cached ? rows_of(call.v) : Rows{call.x.data, 0, 0};
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

  // rows: those of the plan.
  bool find(Key key, int64_t rows) {
    key.flags |= static_cast<uint64_t>(device_) << kDevice;
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

}  // namespace

Variants& variants() {
  static Variants of_process;
  return of_process;
}

bool run(const NormCall& call) {
  const int64_t rows = call.space.num_rows(), groups = call.spec.size / call.spec.group_size;
  if (!call.x.on_cuda() || rows > kMaxRows || call.space.num_dims() > 2) return false;
  if (rows > 0) {
    Launch launch;
    if (!launch.prepare(call.x) || !launch.find(key_of(call), rows * groups)) return false;
    Fields fields;
    set_norm(call, &fields);
    launch(fields, launch.programs(rows), static_cast<uint32_t>(groups));
  }
  count(call.op);
  return true;
}

bool run(const RopeCall& call) {
  if (!call.x.on_cuda() || call.num_tokens > kMaxRows) return false;
  if (call.num_tokens == 0) return count(kQkNormRope), true;
  const int64_t heads = call.q.count + call.k.count;
  Launch launch;
  if (!launch.prepare(call.x) ||
      !launch.find({rope_flags(call), call.spec.norm.size, pairs_of(call.spec)}, call.num_tokens * heads))
    return false;

  Fields fields;
  set_rope(call, &fields);
  set_cache(call, &fields);
  const uint32_t of_kv = launch.programs(call.k.count);
  const uint32_t blocks = launch.programs(call.q.count) + (call.is_cached ? 2 : 1) * of_kv;
  launch(fields, static_cast<uint32_t>(call.num_tokens), blocks);
  count(kQkNormRope);
  return true;
}

}  // namespace serving_ops::cuda
