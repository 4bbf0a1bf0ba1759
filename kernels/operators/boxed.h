// From PyTorch's boxed call to a kernel, or to the Python fallback of the same operator.
#pragma once

#include <algorithm>

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

  // The same into a new tensor like the first of kArguments, which the call takes behind them and the operator returns.
  template <int kArguments>
  static void call_new(StableIValue* stack, const char* kinds, const char* fallback) {
    StableIValue with_out[kArguments + 1];
    std::copy_n(stack, kArguments, with_out);
    Arguments arguments(with_out, kinds);
    NewTensor out = NewTensor::empty_like(arguments.tensor(0));
    with_out[kArguments] = out.boxed();
    call(arguments, fallback);
    stack[0] = out.release();
  }
};

}  // namespace serving_ops
