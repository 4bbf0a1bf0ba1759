// Calls of the norms that quantize their result: as calls.h.
#pragma once

#include <algorithm>
#include <array>

#include "memory.h"

namespace serving_ops {

// From `QuantFormat.text`: dtype, granularity, group size, scale format and scale layout. False for what is not known.
inline bool read_format(std::string_view text, QuantFormat* format) {
  const auto choose = [&text](const std::array<std::string_view, 3>& words, auto* chosen) {
    const std::string_view word = text.substr(0, text.find(' '));
    text.remove_prefix(std::min(text.size(), word.size() + 1));
    size_t place = 0;
    while (place < words.size() && word != words[place]) ++place;
    *chosen = static_cast<std::remove_reference_t<decltype(*chosen)>>(place);
    return place < words.size();
  };
  bool large = false;
  const bool known = choose({"float8_e4m3fn", "int8", "int8"}, &format->int8) &&
                     choose({"tensor", "token", "group"}, &format->granularity) && choose({"64", "128", "128"}, &large) &&
                     choose({"fp32", "fp32_power_of_2", "ue8m0"}, &format->scale_form) &&
                     choose({"row_major", "column_major", "tma_aligned"}, &format->scale_layout) && text.empty();
  format->group_size = large ? 128 : 64;
  return known &&
         (format->granularity != QuantFormat::kTensor ||
          (format->scale_form == ScaleForm::fp32 && format->scale_layout == QuantFormat::kRowMajor));
}

inline int32_t dtype_of(const QuantFormat& format) {
  return format.int8 ? aoti_torch_dtype_int8() : aoti_torch_dtype_float8_e4m3fn();
}

// The scales that a call writes for rows like x: as QuantFormat.scales in serving_ops/quant_format.py.
struct ScalesLayout {
  int64_t num_dims = 1;
  int64_t sizes[NewTensor::kMaxDims], strides[NewTensor::kMaxDims];
  int32_t dtype = aoti_torch_dtype_float32();

  ScalesLayout(const QuantFormat& format, const TensorView& x) {
    constexpr int64_t kScalesAWord = 4, kTmaRows = 4;
    if (format.granularity == QuantFormat::kTensor) {
      sizes[0] = 0;
      strides[0] = 1;
      return;
    }
    num_dims = x.num_dims;
    const int64_t last = num_dims - 1;
    std::copy_n(x.sizes, last, sizes);
    sizes[last] = format.granularity == QuantFormat::kGroup ? x.row_size() / format.group_size : 1;
    if (format.scale_form == ScaleForm::ue8m0) {
      sizes[last] = (sizes[last] + kScalesAWord - 1) / kScalesAWord;
      dtype = aoti_torch_dtype_int32();
    }
    const bool row_major = format.scale_layout == QuantFormat::kRowMajor;
    int64_t step = row_major ? std::max<int64_t>(sizes[last], 1) : 1;
    for (int64_t d = last - 1; d >= 0; --d) {
      strides[d] = step;
      step *= row_major ? std::max<int64_t>(sizes[d], 1) : sizes[d];
    }
    if (format.scale_layout == QuantFormat::kTmaAligned) step = (step + kTmaRows - 1) / kTmaRows * kTmaRows;
    strides[last] = row_major ? 1 : step;
  }

  // Row-major scales that are given may lie anywhere.
  bool is_of(const TensorView& scales, const QuantFormat& format) const {
    if (scales.num_dims != num_dims || scales.dtype != dtype) return false;
    for (int64_t d = 0; d < num_dims; ++d) {
      if (scales.sizes[d] != sizes[d]) return false;
      if (format.scale_layout != QuantFormat::kRowMajor && sizes[d] > 1 && scales.strides[d] != strides[d]) return false;
    }
    return true;
  }
};

// What a call writes: the rows before they are quantized, if wanted, the quantized rows, and their scales.
struct QuantResult {
  QuantFormat format{};
  bool has_normed;
  TensorView normed, q;  // normed is x where it is not wanted
  TensorView scales;     // one that is read, with kTensor
  int64_t scales_row_stride = 0, scales_group_stride = 0;

  struct Given {
    AtenTensorHandle scale, normed, q, scales;
  };

  Refusal read(const Given& given, const TensorView& x, Memory* memory) {
    if (format.granularity == QuantFormat::kGroup && x.row_size() % format.group_size != 0)
      return {"fmt.group_size", " does not divide N"};
    if (x.num_dims > NewTensor::kMaxDims) return kTooManyDims;
    has_normed = given.normed != nullptr;
    normed = has_normed ? TensorView(given.normed) : x;
    q = TensorView(given.q);
    if (const Refusal refusal = normed.read_rows_like("normed", x)) return refusal;
    if (const Refusal refusal = q.read_rows_of("out", x, dtype_of(format))) return refusal;
    if (has_normed) memory->add("normed", normed, Memory::kNormed);
    memory->add("out", q, Memory::kWritten);
    return read_scales(given, x, memory);
  }

  // The columns of one scale, as the kernels take them (SCALED in kernels/triton/epilogue.py).
  int64_t columns_of_a_scale() const {
    if (format.granularity == QuantFormat::kGroup) return format.group_size;
    return format.granularity == QuantFormat::kToken ? -1 : 0;
  }

 private:
  Refusal read_scales(const Given& given, const TensorView& x, Memory* memory) {
    constexpr Refusal kOtherScales{"scales_out", " is not as the format has it"};
    const TensorView written(given.scales);
    if (!ScalesLayout(format, x).is_of(written, format) || !written.on_device_of(x)) return kOtherScales;
    if ((given.scale != nullptr) != (format.granularity == QuantFormat::kTensor))
      return {"scale", " is given where fmt.granularity is 'tensor', and nowhere else"};
    if (given.scale != nullptr) {
      scales = TensorView(given.scale);
      memory->add("scale", scales, Memory::kRead);
      const bool is_scalar = scales.num_dims == 0 && scales.dtype == written.dtype && scales.on_device_of(x);
      return is_scalar ? Refusal{} : Refusal{"scale", " is not one number in fp32 on x's device"};
    }
    scales = written;
    memory->add("scales_out", scales, Memory::kWritten);
    RowSpace<1> rows;
    if (!rows.build(scales.num_dims - 1, scales.sizes, {scales.strides}) || rows.num_dims() > 1)
      return {"scales_out", " has leading dimensions that do not merge into one"};
    scales_row_stride = rows.row_stride(0);
    scales_group_stride = scales.strides[scales.num_dims - 1];
    return {};
  }
};

struct NormQuantCall {
  Op op;
  NormSpec spec{};
  TensorView x, residual;  // residual is x for rms_norm_quant
  QuantResult result;
  RowSpace<4> space;  // of x, residual, normed and q

  // rms_norm_quant(x, weight, eps, fmt, out, scales_out, scale, weight_offset, normed)
  Refusal read_rms_norm(const Arguments& arguments) {
    if (const Refusal refusal = read_numbers(arguments.number(2), arguments.number(7), &spec)) return refusal;
    if (!read_format(arguments.text(3), &result.format)) return kUnknownFormat;
    return read(arguments.tensor(0), nullptr, arguments.optional_tensor(1), results(arguments, 4));
  }

  // fused_add_rms_norm_quant(x, residual, weight, eps, fmt, out, scales_out, scale, weight_offset, normed)
  Refusal read_fused_add(const Arguments& arguments) {
    if (const Refusal refusal = read_numbers(arguments.number(3), arguments.number(8), &spec)) return refusal;
    if (!read_format(arguments.text(4), &result.format)) return kUnknownFormat;
    return read(arguments.tensor(0), arguments.tensor(1), arguments.optional_tensor(2), results(arguments, 5));
  }

  // (result, input, weight, scale, epsilon, scale_ub, residual), with a scale a row.
  Refusal read_token_quant(const Arguments& arguments) {
    return read_vllms(arguments, QuantFormat::kToken, 0);
  }

  // The same and group_size, is_scale_transposed: the strides of the scales say that too.
  Refusal read_block_quant(const Arguments& arguments) {
    const int64_t group_size = arguments.integer(7);
    if (group_size != 64 && group_size != 128) return kUnknownFormat;
    return read_vllms(arguments, QuantFormat::kGroup, group_size);
  }

 private:
  static constexpr Refusal kUnknownFormat{"fmt", " is not known"};

  // out, scales_out, scale, weight_offset, normed, from argument `out` on.
  static QuantResult::Given results(const Arguments& arguments, int out) {
    return {arguments.optional_tensor(out + 2), arguments.optional_tensor(out + 4), arguments.tensor(out),
            arguments.tensor(out + 1)};
  }

  Refusal read_vllms(const Arguments& arguments, QuantFormat::Granularity granularity, int64_t group_size) {
    int32_t dtype;
    check(aoti_torch_get_dtype(arguments.tensor(0), &dtype), "reading a tensor");
    if (arguments.optional_tensor(5) != nullptr) return {"scale_ub", " is not None"};
    if (const Refusal refusal = read_eps(arguments.number(4), &spec.eps)) return refusal;
    result.format = {dtype == aoti_torch_dtype_int8(), granularity, group_size, ScaleForm::fp32, QuantFormat::kRowMajor};
    return read(arguments.tensor(1), arguments.optional_tensor(6), arguments.tensor(2),
                {nullptr, nullptr, arguments.tensor(0), arguments.tensor(3)});
  }

  Refusal read(AtenTensorHandle rows, AtenTensorHandle residual_rows, AtenTensorHandle weight_or_null,
               const QuantResult::Given& given) {
    Memory memory;
    op = residual_rows == nullptr ? kRmsNormQuant : kFusedAddRmsNormQuant;
    x = TensorView(rows);
    residual = residual_rows == nullptr ? x : TensorView(residual_rows);
    if (const Refusal refusal = x.read_rows("x", &spec.dtype)) return refusal;
    if (const Refusal refusal = read_residual(residual, x, &spec)) return refusal;
    spec.size = x.row_size();
    memory.add("x", x, Memory::kMayBecomeNormed);
    if (residual_rows != nullptr) memory.add("residual", residual, Memory::kWritten);
    TensorView weight;
    if (weight_or_null != nullptr) {
      weight = TensorView(weight_or_null);
      if (const Refusal refusal = weight.read_param("weight", x, spec.dtype, &spec.weight)) return refusal;
      memory.add("weight", weight, Memory::kRead);
    }
    if (const Refusal refusal = result.read(given, x, &memory)) return refusal;
    if (const Refusal refusal = memory.why_not()) return refusal;
    const bool few = space.build(x.num_dims - 1, x.sizes,
                                 {x.strides, residual.strides, result.normed.strides, result.q.strides});
    return few ? Refusal{} : kTooManyDims;
  }
};

struct GatedQuantCall {
  GatedNormSpec spec{};
  TensorView x, z;  // z is x where there is no gate
  bool has_gate;
  QuantResult result;
  RowSpace<4> space;  // of x, z, normed and q

  // rms_norm_gated_quant(x, z, weight, eps, fmt, out, scales_out, scale, bias, norm_before_gate, activation,
  // norm_group_size, normed)
  Refusal read(const Arguments& arguments) {
    Memory memory;
    if (!read_format(arguments.text(4), &result.format)) return {"fmt", " is not known"};
    x = TensorView(arguments.tensor(0));
    if (const Refusal refusal = x.read_rows("x", &spec.dtype)) return refusal;
    if (const Refusal refusal = GatedCall::read_options(arguments, 3, 9, x.row_size(), &spec)) return refusal;
    memory.add("x", x, Memory::kMayBecomeNormed);
    has_gate = arguments.optional_tensor(1) != nullptr;
    z = has_gate ? TensorView(arguments.optional_tensor(1)) : x;
    if (const Refusal refusal = z.read_rows_like("z", x)) return refusal;
    if (has_gate) memory.add("z", z, Memory::kMayBecomeNormed);
    TensorView weight, bias;
    if (const Refusal refusal = read_param("weight", arguments.optional_tensor(2), &weight, &spec.weight, &memory))
      return refusal;
    if (const Refusal refusal = read_param("bias", arguments.optional_tensor(8), &bias, &spec.bias, &memory))
      return refusal;
    if (const Refusal refusal = read_groups()) return refusal;
    const QuantResult::Given given{arguments.optional_tensor(7), arguments.optional_tensor(12), arguments.tensor(5),
                                   arguments.tensor(6)};
    if (const Refusal refusal = result.read(given, x, &memory)) return refusal;
    if (const Refusal refusal = memory.why_not()) return refusal;
    const bool few =
        space.build(x.num_dims - 1, x.sizes, {x.strides, z.strides, result.normed.strides, result.q.strides});
    return few ? Refusal{} : kTooManyDims;
  }

 private:
  // A program, which has one gated group of a row, must be able to write its scales: `why_not_scales` in
  // serving_ops/cuda.py.
  Refusal read_groups() const {
    const QuantFormat& format = result.format;
    const int64_t groups = spec.size / spec.group_size, scales = spec.group_size / format.group_size;
    const bool by_group = format.granularity == QuantFormat::kGroup;
    if (groups > kMaxGroups) return {"norm_group_size", " makes more groups than a CUDA grid holds"};
    if ((groups > 1 && format.granularity == QuantFormat::kToken) ||
        (by_group && spec.group_size % format.group_size != 0) ||
        (by_group && groups > 1 && format.scale_form == ScaleForm::ue8m0 && scales % 4 != 0))
      return {"fmt", " has scales that several gated groups share"};
    return {};
  }
  Refusal read_param(const char* name, AtenTensorHandle tensor, TensorView* view, Param* param, Memory* memory) {
    if (tensor == nullptr) return {};
    *view = TensorView(tensor);
    if (const Refusal refusal = view->read_param(name, x, spec.dtype, param)) return refusal;
    memory->add(name, *view, Memory::kRead);
    return {};
  }
};

}  // namespace serving_ops
