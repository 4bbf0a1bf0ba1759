// What the norms that quantize write, and how.
#pragma once

#include <algorithm>
#include <array>

#include "memory.h"
#include "row_space.h"

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

// The quantized rows, and their scales.
struct QuantResult {
  QuantFormat format{};
  TensorView q, scales;  // with kTensor, the latter is one that is read
  int64_t scales_row_stride = 0, scales_group_stride = 0;

  // scale: null where none is given.
  Refusal read(AtenTensorHandle scale, AtenTensorHandle out, AtenTensorHandle scales_out, const TensorView& x,
               Memory* memory) {
    if (format.granularity == QuantFormat::kGroup && x.row_size() % format.group_size != 0)
      return {"fmt.group_size", " does not divide N"};
    if (x.num_dims > NewTensor::kMaxDims) return kTooManyDims;
    q = TensorView(out);
    if (const Refusal refusal = q.read_rows_like("out", x, dtype_of(format))) return refusal;
    memory->add("out", q, Memory::kWritten);
    scales = TensorView(scales_out);
    if (!ScalesLayout(format, x).is_of(scales, format) || !scales.on_device_of(x))
      return {"scales_out", " is not as the format has it"};
    if ((scale != nullptr) != (format.granularity == QuantFormat::kTensor))
      return {"scale", " is given where fmt.granularity is 'tensor', and nowhere else"};
    if (scale != nullptr) {
      const int32_t float32 = scales.dtype;
      scales = TensorView(scale);
      memory->add("scale", scales, Memory::kRead);
      const bool is_scalar = scales.num_dims == 0 && scales.dtype == float32 && scales.on_device_of(x);
      return is_scalar ? Refusal{} : Refusal{"scale", " is not one number in fp32 on x's device"};
    }
    memory->add("scales_out", scales, Memory::kWritten);
    RowSpace<1> rows;
    if (!rows.build(scales.num_dims - 1, scales.sizes, {scales.strides}) || rows.num_dims() > 1)
      return {"scales_out", " has leading dimensions that do not merge into one"};
    scales_row_stride = rows.stride(0, 0);
    scales_group_stride = scales.strides[scales.num_dims - 1];
    return {};
  }

  // The columns of one scale, as the kernels take them (SCALED in kernels/triton/epilogue.py).
  int64_t columns_of_a_scale() const {
    if (format.granularity == QuantFormat::kGroup) return format.group_size;
    return format.granularity == QuantFormat::kToken ? -1 : 0;
  }
};

}  // namespace serving_ops
