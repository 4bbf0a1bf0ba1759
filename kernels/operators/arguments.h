// A boxed call's arguments, straight from the stable ABI's stack. torch::stable::Tensor would allocate a shared_ptr an
// argument, which shows at one row.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/c/shim.h>

#include <cstring>
#include <stdexcept>
#include <string>
#include <string_view>

namespace serving_ops {

inline void check(AOTITorchError error, const char* what) {
  if (error != AOTI_TORCH_SUCCESS) throw std::runtime_error(std::string("serving_ops: ") + what + " failed");
}

template <class T>
inline T unboxed(StableIValue value) {
  T result;
  std::memcpy(&result, &value, sizeof result);
  return result;
}

// A string result.
inline StableIValue boxed_text(const std::string& text) {
  StringHandle handle;
  check(torch_new_string_handle(text.data(), text.size(), &handle), "making a string");
  StableIValue value = 0;
  std::memcpy(&value, &handle, sizeof handle);
  return value;
}

// Reads the arguments in place and frees them when it ends, unless they were handed over. `kinds` has a letter an
// argument: t Tensor, T a Tensor for a result, o Tensor?, i int?, l int[]?, s str, . a plain value, b a Tensor that the
// caller keeps.
class Arguments {
 public:
  Arguments(StableIValue* stack, const char* kinds) : stack_(stack), kinds_(kinds) {}
  Arguments(const Arguments&) = delete;
  Arguments& operator=(const Arguments&) = delete;
  ~Arguments() {
    for (int i = 0; owned_ && kinds_[i] != '\0'; ++i) release(i);
  }

  // Null for None, and for an argument that the operator lacks, whose place is below 0.
  AtenTensorHandle tensor(int i) const {
    if (i < 0 || (kinds_[i] == 'o' && stack_[i] == 0)) return nullptr;
    return unboxed<AtenTensorHandle>(kinds_[i] == 'o' ? *inner(i) : stack_[i]);
  }
  int64_t optional_int(int i, int64_t otherwise) const {
    return stack_[i] == 0 ? otherwise : unboxed<int64_t>(*inner(i));
  }
  bool is_none(int i) const { return stack_[i] == 0; }
  // An int[]?; false where it has another number of them.
  template <size_t kCount>
  bool integers(int i, int64_t (&values)[kCount]) const {
    const auto list = unboxed<StableListHandle>(*inner(i));
    size_t count;
    check(torch_list_size(list, &count), "reading a list");
    for (size_t j = 0; j < count && count == kCount; ++j) {
      StableIValue value;
      check(torch_list_get_item(list, j, &value), "reading a list");
      values[j] = unboxed<int64_t>(value);
    }
    return count == kCount;
  }
  int64_t integer(int i) const { return unboxed<int64_t>(stack_[i]); }
  double number(int i) const { return unboxed<double>(stack_[i]); }
  bool boolean(int i) const { return unboxed<bool>(stack_[i]); }
  std::string_view text(int i) const { return text_of(stack_[i]); }

  // Returns what `read` returns. Where it throws because an argument is None in place of a tensor, which PyTorch lets
  // through as one that nothing can be read of, throws the argument's name. `names` has a space between two.
  template <class Read>
  auto naming_none(std::string_view names, Read read) const {
    try {
      return read();
    } catch (const std::exception&) {
      throw_name_of_none(names);
      throw;
    }
  }

  // Calls the operator's Python fallback, which returns a text, and throws that text unless it is empty.
  void hand_over(const char* name) {
    const std::string fallback = std::string("serving_ops::_") + name + "_fallback";
    for (int i = 0; kinds_[i] != '\0'; ++i)
      if (kinds_[i] == 'b') {
        AtenTensorHandle copy;
        check(aoti_torch_new_tensor_handle(tensor(i), &copy), "copying a tensor's handle");
        std::memcpy(&stack_[i], &copy, sizeof copy);
      }
    owned_ = false;
    check(torch_call_dispatcher(fallback.c_str(), "", stack_, TORCH_ABI_VERSION), fallback.c_str());
    const std::string error(text_of(stack_[0]));
    torch_delete_string(unboxed<StringHandle>(stack_[0]));
    if (!error.empty()) throw std::runtime_error(error);
  }

 private:
  void throw_name_of_none(std::string_view names) const {
    for (int i = 0; kinds_[i] != '\0'; ++i) {
      const std::string name(names.substr(0, names.find(' ')));
      names.remove_prefix(name.size() + (name.size() < names.size()));
      bool defined = true;
      if (kinds_[i] == 't' || kinds_[i] == 'T') check(aoti_torch_is_defined(tensor(i), &defined), "reading a tensor");
      if (!defined) throw std::runtime_error("serving_ops: " + name + " is None: it must be a tensor");
    }
  }

  StableIValue* inner(int i) const { return unboxed<StableIValue*>(stack_[i]); }

  static std::string_view text_of(StableIValue value) {
    const char* data;
    size_t length;
    check(torch_string_c_str(unboxed<StringHandle>(value), &data), "reading a string");
    check(torch_string_length(unboxed<StringHandle>(value), &length), "reading a string");
    return {data, length};
  }

  void release(int i) {
    const char kind = kinds_[i];
    const bool optional = kind == 'o' || kind == 'i' || kind == 'l';
    if (optional && stack_[i] == 0) return;
    if (kind == 't' || kind == 'T' || kind == 'o') aoti_torch_delete_tensor_object(tensor(i));
    if (kind == 's') torch_delete_string(unboxed<StringHandle>(stack_[i]));
    if (kind == 'l') torch_delete_list(unboxed<StableListHandle>(*inner(i)));
    if (optional) delete inner(i);
  }

  StableIValue* stack_;
  const char* kinds_;
  bool owned_ = true;
};

// A tensor of this library's making, until it is given away.
class NewTensor {
 public:
  static constexpr int64_t kMaxDims = 64;

  // Contiguous, of the given tensor's shape, dtype and device.
  static NewTensor empty_like(AtenTensorHandle like) {
    int32_t dtype;
    check(aoti_torch_get_dtype(like, &dtype), "reading a tensor");
    return empty_like(like, dtype);
  }
  // The same, but of this dtype.
  static NewTensor empty_like(AtenTensorHandle like, int32_t dtype) {
    int64_t num_dims, *sizes, strides[kMaxDims];
    check(aoti_torch_get_dim(like, &num_dims), "reading a tensor");
    check(aoti_torch_get_sizes(like, &sizes), "reading a tensor");
    if (num_dims > kMaxDims) throw std::runtime_error("serving_ops: x has more than 64 dimensions");
    int64_t stride = 1;
    for (int64_t d = num_dims - 1; d >= 0; --d) {
      strides[d] = stride;
      if (sizes[d] > 1) stride *= sizes[d];
    }
    return empty(like, num_dims, sizes, strides, dtype);
  }
  // Contiguous.
  static NewTensor copy_of(AtenTensorHandle source) {
    NewTensor copy = empty_like(source);
    check(aoti_torch_copy_(copy.handle_, source, /*non_blocking=*/0), "copying a tensor");
    return copy;
  }
  // (0,), of the given tensor's dtype and device.
  static NewTensor without_elements(AtenTensorHandle like) {
    const int64_t size = 0, stride = 1;
    int32_t dtype;
    check(aoti_torch_get_dtype(like, &dtype), "reading a tensor");
    return empty(like, 1, &size, &stride, dtype);
  }
  // On the given tensor's device.
  static NewTensor empty(AtenTensorHandle like, int64_t num_dims, const int64_t* sizes, const int64_t* strides,
                         int32_t dtype) {
    int32_t device_type, device_index;
    check(aoti_torch_get_device_type(like, &device_type), "reading a tensor");
    check(aoti_torch_get_device_index(like, &device_index), "reading a tensor");
    NewTensor made;
    check(aoti_torch_empty_strided(num_dims, sizes, strides, dtype, device_type, device_index, &made.handle_),
          "allocating the result (out of memory?)");
    return made;
  }
  NewTensor(NewTensor&& other) : handle_(other.handle_) { other.handle_ = nullptr; }
  ~NewTensor() {
    if (handle_ != nullptr) aoti_torch_delete_tensor_object(handle_);
  }

  StableIValue boxed() const {
    StableIValue value = 0;
    std::memcpy(&value, &handle_, sizeof handle_);
    return value;
  }
  // The same, given away.
  StableIValue release() {
    const StableIValue value = boxed();
    handle_ = nullptr;
    return value;
  }

 private:
  NewTensor() = default;
  AtenTensorHandle handle_ = nullptr;
};

}  // namespace serving_ops
