// A tensor as the kernels see it, and the questions that decide whether they take it.
#pragma once

#include <algorithm>
#include <numeric>
#include <string>

#include "arguments.h"
#include "spec.h"

namespace serving_ops {

// Why the kernels do not take a call: an argument and what is wrong with it. False where they take the call.
struct Refusal {
  const char* argument = "";
  const char* reason = nullptr;

  explicit operator bool() const { return reason != nullptr; }
  // For a person; empty where there is no reason.
  std::string text() const { return reason == nullptr ? "" : std::string(argument) + reason; }
};

constexpr Refusal kTooManyDims{"", "leading dimensions that merge into more than 6"};

struct TensorView {
  AtenTensorHandle handle;
  char* data;
  const int64_t* sizes;
  const int64_t* strides;  // in elements
  int64_t num_dims;
  int32_t dtype;
  int32_t device_type;
  int64_t item_bytes;  // of an element

  TensorView() = default;
  explicit TensorView(AtenTensorHandle tensor) : handle(tensor) {
    int64_t *sizes_of, *strides_of;
    void* data_of;
    check(aoti_torch_get_dim(tensor, &num_dims), "reading a tensor");
    check(aoti_torch_get_sizes(tensor, &sizes_of), "reading a tensor");
    check(aoti_torch_get_strides(tensor, &strides_of), "reading a tensor");
    check(aoti_torch_get_dtype(tensor, &dtype), "reading a tensor");
    check(aoti_torch_get_device_type(tensor, &device_type), "reading a tensor");
    check(aoti_torch_get_data_ptr(tensor, &data_of), "reading a tensor");
    item_bytes = static_cast<int64_t>(aoti_torch_dtype_element_size(dtype));
    sizes = sizes_of;
    strides = strides_of;
    data = static_cast<char*>(data_of);
  }

  int64_t row_size() const { return sizes[num_dims - 1]; }
  bool on_cpu() const {
    static const int32_t cpu = aoti_torch_device_type_cpu();
    return device_type == cpu;
  }
  bool on_cuda() const {
    static const int32_t cuda = aoti_torch_device_type_cuda();
    return device_type == cuda;
  }
  int32_t device_index() const {
    int32_t index;
    check(aoti_torch_get_device_index(handle, &index), "reading a tensor");
    return index;
  }
  bool on_device_of(const TensorView& x) const {
    return device_type == x.device_type && (on_cpu() || device_index() == x.device_index());
  }
  bool is_fp8() const {
    static const int32_t float8 = aoti_torch_dtype_float8_e4m3fn();
    return dtype == float8;
  }
  bool element_type(Dtype* result) const {
    static const int32_t float32 = aoti_torch_dtype_float32(), bfloat16 = aoti_torch_dtype_bfloat16(),
                         float16 = aoti_torch_dtype_float16();
    if (dtype == bfloat16) *result = Dtype::bfloat16;
    else if (dtype == float16) *result = Dtype::float16;
    else if (dtype == float32) *result = Dtype::float32;
    else return false;
    return true;
  }

  // Whether these are rows of a dtype that the kernels know, the elements of a row side by side.
  Refusal read_rows(const char* name, Dtype* result) const {
    if (num_dims == 0 || row_size() == 0) return {name, ".shape is not (..., N)"};
    if (!element_type(result)) return {name, ".dtype is not float16, bfloat16 or float32"};
    if (strides[num_dims - 1] != 1 && row_size() != 1) return {name, ".stride(-1) is not 1"};
    return {};
  }
  // The same, of x's shape and device, and of this dtype.
  Refusal read_rows_like(const char* name, const TensorView& x, int32_t wanted) const {
    if (num_dims != x.num_dims || dtype != wanted || std::memcmp(sizes, x.sizes, num_dims * sizeof *sizes) != 0 ||
        !on_device_of(x))
      return {name, " is not like x"};
    if (strides[num_dims - 1] != 1 && row_size() != 1) return {name, ".stride(-1) is not 1"};
    return {};
  }
  // Whether this is a weight or a bias of (size,), in x's dtype or float32.
  Refusal read_vector(const char* name, int64_t size, const TensorView& x, Dtype x_dtype, Param* param) const {
    param->data = data;
    if (num_dims != 1 || sizes[0] != size || !on_device_of(x)) return {name, " is not (N,) on x's device"};
    if (!element_type(&param->dtype) || (param->dtype != x_dtype && param->dtype != Dtype::float32))
      return {name, ".dtype is neither x's nor float32"};
    if (strides[0] != 1 && size != 1) return {name, ".stride(0) is not 1"};
    return {};
  }

  // One past the last element, from the first; of the dimensions from d on.
  int64_t extent(int64_t d = 0) const {
    int64_t last = 0;
    for (; d < num_dims; ++d) {
      if (sizes[d] == 0) return 0;
      last += (sizes[d] - 1) * strides[d];
    }
    return last + 1;
  }
  char* end() const { return data + extent() * item_bytes; }
  // Column slices of one buffer, or blocks that take turns in it: for some number of leading dimensions, modulo the common
  // divisor of their strides, what one has within them ends before the other's begins.
  bool lies_between_rows_of(const TensorView& other) const {
    const int64_t apart = other.data - data, dims = std::min(num_dims, other.num_dims);
    if (dtype != other.dtype || apart % item_bytes != 0) return false;
    int64_t period = 0;
    for (int64_t d = 0; d + 1 < dims; ++d) {
      if (sizes[d] > 1) period = std::gcd(period, strides[d]);
      if (other.sizes[d] > 1) period = std::gcd(period, other.strides[d]);
      if (period == 0) continue;
      const int64_t distance = (apart / item_bytes % period + period) % period;
      if (distance >= extent(d + 1) && distance <= period - other.extent(d + 1)) return true;
    }
    return false;
  }
  bool is_same_view(const TensorView& other) const { return data == other.data && has_strides_of(other); }
  // Of a tensor of this shape; a dimension with one entry has no stride to speak of.
  bool has_strides_of(const TensorView& other) const {
    for (int64_t d = 0; d < num_dims; ++d)
      if (sizes[d] > 1 && strides[d] != other.strides[d]) return false;
    return true;
  }

  // No element is in the tensor twice: each stride passes all that the smaller ones reach. May say no of an odd layout.
  bool is_writable() const {
    for (int64_t d = 0; d < num_dims; ++d) {
      if (sizes[d] <= 1) continue;
      int64_t reach = 0;
      for (int64_t e = 0; e < num_dims; ++e)
        if (sizes[e] > 1 && (strides[e] < strides[d] || (strides[e] == strides[d] && e > d)))
          reach += (sizes[e] - 1) * strides[e];
      if (strides[d] <= reach) return false;
    }
    return true;
  }
};

}  // namespace serving_ops
