// From PyTorch's boxed call to a kernel, or to the Python fallback of the same operator.
#pragma once

#include <algorithm>
#include <array>

#include "calls.h"

namespace serving_ops {

// New tensors, each like one of the arguments, and without elements where that argument is None.
template <int... kLike>
std::array<NewTensor, sizeof...(kLike)> new_like(const Arguments& arguments) {
  const auto like = [&arguments](int i) {
    const AtenTensorHandle given = arguments.tensor(i);
    return given != nullptr ? NewTensor::empty_like(given) : NewTensor::without_elements(arguments.tensor(0));
  };
  return {like(kLike)...};
}

// Quantized rows like x, and their scales. Of a call that is wrong they have no elements.
template <class Op>
std::array<NewTensor, 2> new_quantized(const Arguments& arguments) {
  constexpr Places at(Op::kArguments);
  const TensorView x(arguments.tensor(at.x));
  QuantFormat format;
  if (!read_format(arguments.text(at.fmt), &format) || x.num_dims == 0 || x.num_dims > NewTensor::kMaxDims)
    return {NewTensor::without_elements(x.handle), NewTensor::without_elements(x.handle)};
  const ScalesLayout scales(format, x);
  return {NewTensor::empty_like(x.handle, dtype_of(format)),
          NewTensor::empty(x.handle, scales.num_dims, scales.sizes, scales.strides, scales.dtype)};
}

// An operator on one device, where `run` runs what its arguments are read into. Op: Call, kName, kKinds, kArguments,
// and where it makes its results, results(arguments).
template <class Op, bool (*run)(const typename Op::Call&)>
struct Operator {
  using Call = typename Op::Call;

  // Runs the kernels, or, where they do not take the call, the fallback.
  static void call(Arguments& arguments) {
    Call call;
    const Refusal refusal =
        arguments.naming_none(Op::kArguments, [&] { return call.template read<Op>(arguments); });
    if (refusal || !run(call)) arguments.hand_over(Op::kName);
  }

  // The operator that writes into its arguments.
  static void into(StableIValue* stack, uint64_t, uint64_t) {
    Arguments arguments(stack, Op::kKinds);
    call(arguments);
  }

  // The operator that returns new results.
  static void make(StableIValue* stack, uint64_t, uint64_t) {
    constexpr int kAll = sizeof(Op::kKinds) - 1;
    char kinds[kAll + 1];
    std::replace_copy(Op::kKinds, Op::kKinds + kAll + 1, kinds, 'T', 'b');
    StableIValue with_results[kAll], *given = stack;
    for (int i = 0; i < kAll; ++i) with_results[i] = kinds[i] == 'b' ? 0 : *given++;
    Arguments arguments(with_results, kinds);
    auto results = arguments.naming_none(Op::kArguments, [&] { return Op::results(arguments); });
    for (int i = 0, made = 0; i < kAll; ++i)
      if (kinds[i] == 'b') with_results[i] = results[made++].boxed();
    call(arguments);
    for (NewTensor& result : results) *stack++ = result.release();
  }

  // Why `call` would hand over instead of running, as a text; empty where the kernels take the call.
  static void refusal(StableIValue* stack, uint64_t, uint64_t) {
    std::string why;
    {
      Arguments arguments(stack, Op::kKinds);
      Call call;
      why = call.template read<Op>(arguments).text();
    }
    stack[0] = boxed_text(why);
  }
};

}  // namespace serving_ops
