// From PyTorch's boxed call to a kernel, or to the Python fallback of the same operator.
#pragma once

#include <algorithm>
#include <array>
#include <tuple>

#include "calls.h"

namespace serving_ops {

// An operator on one device: how its arguments are read into a Call, and what runs it.
template <class Call, Refusal (Call::*read)(const Arguments&), bool (*run)(const Call&)>
struct Operator {
  // Runs the kernels, or, where they do not take the call, the fallback.
  static void call(Arguments& arguments, const char* fallback) {
    Call call;
    if ((call.*read)(arguments) || !run(call)) arguments.hand_over(fallback);
  }

  // The same into new tensors, each like one of the arguments, and without elements where that argument is None. The call
  // takes them behind the operator's arguments, and the operator returns them.
  template <int... kLike, size_t kKinds>
  static void call_new(StableIValue* stack, const char (&kinds)[kKinds], const char* fallback) {
    call_into(stack, kinds, fallback, [](const Arguments& arguments) {
      return std::array<NewTensor, sizeof...(kLike)>{new_like(arguments, kLike)...};
    });
  }

  // The same into the array of new tensors that make(arguments) returns.
  template <size_t kKinds, class Make>
  static void call_into(StableIValue* stack, const char (&kinds)[kKinds], const char* fallback, Make make) {
    constexpr int kResults = std::tuple_size_v<decltype(make(std::declval<const Arguments&>()))>;
    constexpr int kArguments = static_cast<int>(kKinds) - 1 - kResults;
    StableIValue with_results[kArguments + kResults];
    std::copy_n(stack, kArguments, with_results);
    Arguments arguments(with_results, kinds);
    auto results = make(arguments);
    for (int i = 0; i < kResults; ++i) with_results[kArguments + i] = results[i].boxed();
    call(arguments, fallback);
    for (int i = 0; i < kResults; ++i) stack[i] = results[i].release();
  }

  // Returns why `call` would hand over instead of running, as a text; empty where the kernels take the call.
  static void refusal(StableIValue* stack, const char* kinds) {
    std::string why;
    {
      Arguments arguments(stack, kinds);
      Call call;
      why = (call.*read)(arguments).text();
    }
    stack[0] = boxed_text(why);
  }

 private:
  static NewTensor new_like(const Arguments& arguments, int i) {
    const AtenTensorHandle like = arguments.any_tensor(i);
    return like != nullptr ? NewTensor::empty_like(like) : NewTensor::without_elements(arguments.tensor(0));
  }
};

}  // namespace serving_ops
