// From a call to kernel runs: threads and rows.
#pragma once

#include <memory>

#include "../operators/count.h"
#include "../operators/quant_calls.h"
#include "isa.h"

namespace serving_ops::cpu {

// What an element costs, in elements of a plain norm.
constexpr int64_t kNormWork = 1, kGateWork = 2, kInt8Work = 1, kRopeWork = 2;
// Elements of a plain norm from which a second thread pays: waking it costs 0.7 us, an element 0.09 ns (Zen 5, bf16).
constexpr int64_t kParallelWork = 24 * 1024;
// What a thread gets at least.
constexpr int64_t kGrainWork = 8 * 1024;

// body(begin, end) over the rows, on torch's threads where that pays. body must not throw.
template <class Body>
inline void for_each_chunk(int64_t num_rows, int64_t row_work, const Body& body) {
  if (num_rows == 0) return;
  if (num_rows == 1 || num_rows * row_work < kParallelWork) return body(0, num_rows);
  const auto call = [](int64_t begin, int64_t end, void* context) { (*static_cast<const Body*>(context))(begin, end); };
  check(torch_parallel_for(0, num_rows, (kGrainWork + row_work - 1) / row_work, call, const_cast<Body*>(&body)),
        "torch_parallel_for");
}

// Memory of this thread to work in, kept from call to call.
inline void* scratch(int64_t bytes) {
  static thread_local std::unique_ptr<char[]> memory;
  static thread_local int64_t size = 0;
  if (size < bytes) {
    memory.reset(new char[bytes]);
    size = bytes;
  }
  return memory.get();
}

// run(rows, count), rows[k] being the rows of tensor k, until every row of the space is done.
template <int Operands, class Run>
inline void for_each_rows(const RowSpace<Operands>& space, const TensorView* const (&tensors)[Operands],
                          const int64_t (&element_bytes)[Operands], int64_t element_work, const Run& run) {
  for_each_chunk(space.num_rows(), tensors[0]->row_size() * element_work, [&](int64_t begin, int64_t end) {
    space.for_each_run(begin, end, [&](const int64_t(&offsets)[Operands], int64_t count) {
      Rows rows[Operands];
      for (int k = 0; k < Operands; ++k)
        rows[k] = {tensors[k]->data + offsets[k] * element_bytes[k], space.row_stride(k), space.ahead(k)};
      run(rows, count);
    });
  });
}

inline bool run(const NormCall& call) {
  if (!call.x.on_cpu()) return false;
  const auto kernel = call.op == kFusedAddRmsNorm ? chosen_kernels().fused_add_rms_norm : chosen_kernels().rms_norm;
  const int64_t bytes = element_bytes(call.spec.dtype), other_bytes = call.spec.fp32_residual ? 4 : bytes;
  for_each_rows<2>(call.space, {&call.x, &call.other}, {bytes, other_bytes}, kNormWork,
                   [&](const Rows(&rows)[2], int64_t count) { kernel(call.spec, rows[0], rows[1], count); });
  count(call.op);
  return true;
}

// A quantizing call in the one form that has kernels here.
struct Int8Call : NormQuantCall {
  Refusal read_rms_norm(const Arguments& arguments) {
    const Refusal refusal = NormQuantCall::read_rms_norm(arguments);
    return refusal ? refusal : why_not_format();
  }
  Refusal read_fused_add(const Arguments& arguments) {
    const Refusal refusal = NormQuantCall::read_fused_add(arguments);
    return refusal ? refusal : why_not_format();
  }

 private:
  Refusal why_not_format() const {
    const QuantFormat& format = result.format;
    if (!format.int8) return {"", "FP8 on CPU stays on the reference"};
    if (spec.fp32_residual) return {"residual", ".dtype is float32, which int8 on CPU has no kernel for"};
    if (format.granularity != QuantFormat::kToken || format.scale_form != ScaleForm::fp32)
      return {"", "int8 on CPU has a kernel for an fp32 scale a row alone"};
    return {};
  }
};

inline bool run(const Int8Call& call) {
  const auto kernel = chosen_kernels().rms_norm_int8;
  const QuantResult& result = call.result;
  const int64_t bytes = element_bytes(call.spec.dtype);
  for_each_chunk(call.space.num_rows(), call.spec.size * kInt8Work, [&](int64_t row, int64_t end) {
    float* sums = static_cast<float*>(scratch(scratch_elements(call.spec.size) * sizeof(float)));
    call.space.for_each_run(row, end, [&](const int64_t(&offsets)[4], int64_t count) {
      const auto rows = [&](bool given, const TensorView& tensor, int k, int64_t item_bytes) {
        const Rows found{tensor.data + offsets[k] * item_bytes, call.space.row_stride(k), call.space.ahead(k)};
        return given ? found : Rows{};
      };
      const int64_t scale_stride = result.scales_row_stride;
      float* scale = reinterpret_cast<float*>(result.scales.data) + row * scale_stride;
      const Int8Rows out{rows(true, result.q, 3, 1), {scale, scale_stride}, rows(result.has_normed, result.normed, 2, bytes),
                         sums};
      kernel(call.spec, rows(true, call.x, 0, bytes), rows(call.op == kFusedAddRmsNormQuant, call.residual, 1, bytes), out,
             count);
      row += count;
    });
  });
  count(call.op);
  return true;
}

inline bool run(const GatedCall& call) {
  if (!call.x.on_cpu()) return false;
  const auto kernel = chosen_kernels().rms_norm_gated;
  const int64_t bytes = element_bytes(call.spec.dtype);
  for_each_rows<3>(call.space, {&call.x, &call.z, &call.out}, {bytes, bytes, bytes}, kGateWork,
                   [&](const Rows(&rows)[3], int64_t count) {
                     kernel(call.spec, rows[0], call.has_gate ? rows[1] : Rows{}, rows[2], count);
                   });
  count(kRmsNormGated);
  return true;
}

}  // namespace serving_ops::cpu
