// The results of a quantizing operator that makes them.
#pragma once

#include "../cuda/run.h"
#include "boxed.h"

namespace serving_ops {

// Quantized rows like x, which is argument 0, and their scales. kFormat: the format's place. Of a call that is wrong
// they have no elements.
template <int kFormat>
std::array<NewTensor, 2> new_quantized(const Arguments& arguments) {
  const TensorView x(arguments.tensor(0));
  QuantFormat format;
  if (!read_format(arguments.text(kFormat), &format) || x.num_dims == 0 || x.num_dims > NewTensor::kMaxDims)
    return {NewTensor::without_elements(x.handle), NewTensor::without_elements(x.handle)};
  const ScalesLayout scales(format, x);
  return {NewTensor::empty_like(x.handle, dtype_of(format)),
          NewTensor::empty(x.handle, scales.num_dims, scales.sizes, scales.strides, scales.dtype)};
}

}  // namespace serving_ops
