// From a call to kernel runs: threads, rows and tokens.
#pragma once

#include <memory>

#include "../operators/rope_call.h"
#include "isa.h"

namespace serving_ops::cpu {

// What an element costs, in elements of a plain norm.
constexpr int64_t kNormWork = 1, kGateWork = 2, kRopeWork = 2;
// Elements of a plain norm from which a second thread pays: waking it costs 0.7 us, an element 0.09 ns (Zen 5, bf16).
constexpr int64_t kParallelWork = 24 * 1024;
// What a thread gets at least.
constexpr int64_t kGrainWork = 8 * 1024;

// body(begin, end) over 0..count, on torch's threads, each of which gets at least `grain`. body must not throw.
template <class Body>
inline void on_threads(int64_t count, int64_t grain, const Body& body) {
  const auto call = [](int64_t begin, int64_t end, void* context) { (*static_cast<const Body*>(context))(begin, end); };
  check(torch_parallel_for(0, count, grain, call, const_cast<Body*>(&body)), "torch_parallel_for");
}

// The same over rows, where that pays.
template <class Body>
inline void for_each_chunk(int64_t num_rows, int64_t row_work, const Body& body) {
  if (num_rows == 0) return;
  if (num_rows == 1 || num_rows * row_work < kParallelWork) return body(0, num_rows);
  on_threads(num_rows, (kGrainWork + row_work - 1) / row_work, body);
}

// Memory of this thread to work in, kept from call to call.
inline float* scratch(int64_t elements) {
  static thread_local std::unique_ptr<float[]> memory;
  static thread_local int64_t size = 0;
  if (size < elements) {
    memory.reset(new float[elements]);
    size = elements;
  }
  return memory.get();
}

// run(rows, count) for each run of rows of constant strides that makes up rows begin..end. rows[k] are those of
// tensors[k], which is null where a call lacks it.
template <int Operands, class Run>
inline void for_each_run(const RowSpace<Operands>& space, const TensorView* const (&tensors)[Operands], int64_t begin,
                         int64_t end, const Run& run) {
  int64_t bytes[Operands];
  for (int k = 0; k < Operands; ++k) bytes[k] = tensors[k] == nullptr ? 0 : tensors[k]->item_bytes;
  space.for_each_run(begin, end, [&](const int64_t(&offsets)[Operands], int64_t count) {
    Rows rows[Operands];
    for (int k = 0; k < Operands; ++k)
      if (tensors[k] != nullptr)
        rows[k] = {tensors[k]->data + offsets[k] * bytes[k], space.stride(0, k), space.ahead(k)};
    run(rows, count);
  });
}

inline bool run(const NormCall& call) {
  if (!call.x.on_cpu()) return false;
  const Kernels& kernels = chosen_kernels();
  const auto kernel = call.is_quantized ? kernels.rms_norm_int8
                      : call.is_gated   ? kernels.rms_norm_gated
                                        : kernels.rms_norm;
  const auto where = [](bool given, const TensorView& tensor) { return given ? &tensor : nullptr; };
  // The results of fused_add_rms_norm go to x.
  const TensorView* const tensors[] = {&call.x, where(call.has_second, call.second),
                                       where(call.has_normed || !call.is_quantized, call.normed),
                                       where(call.is_quantized, call.result.q)};
  for_each_chunk(call.space.num_rows(), call.spec.size * (call.is_gated ? kGateWork : kNormWork),
                 [&](int64_t row, int64_t end) {
    float* sums = call.is_quantized ? scratch(scratch_elements(call.spec.size)) : nullptr;
    for_each_run<4>(call.space, tensors, row, end, [&](const Rows(&rows)[4], int64_t count) {
      NormRows of{rows[0], rows[1], rows[2], rows[3], {}, sums};
      if (call.is_quantized) {
        const int64_t stride = call.result.scales_row_stride;
        of.scales = {reinterpret_cast<float*>(call.result.scales.data) + row * stride, stride};
        row += count;
      }
      kernel(call.spec, of, count);
    });
  });
  count(call.op);
  return true;
}

inline bool run(const RopeCall& call) {
  const RopeSpec& spec = call.spec;
  const int64_t work = (call.q.count + call.k.count) * spec.norm.size * kRopeWork;
  const auto kernel = chosen_kernels().qk_norm_rope;
  for_each_chunk(call.num_tokens, work, [&](int64_t begin, int64_t end) {
    const Angles angles{call.table.data, call.table.strides[0], call.positions_of_tokens(),
                        scratch(angles_elements(spec.rotary_dim))};
    kernel(spec, call.q, call.k, angles, begin, end);
  });
  count(kQkNormRope);
  return true;
}

}  // namespace serving_ops::cpu
