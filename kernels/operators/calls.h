// A call of a norm that the kernels take: its tensors, its numbers and its rows. Reading one is the eligibility test of
// every device. What it refuses goes to the Python fallback, and nothing has been written.
#pragma once

#include <atomic>
#include <cmath>
#include <limits>

#include "quant_result.h"

namespace serving_ops {

#define LIMIT(symbol, name, value) constexpr int64_t symbol = value;
#include "../contract.def"

enum Op {
#define OP(symbol, name) symbol,
#include "../contract.def"
  kNumOps
};

// How many calls of each operator the kernels ran, on every device; read through serving_ops_kernel_calls.
inline std::atomic<uint64_t> kernel_calls[kNumOps];

inline void count(Op op) { kernel_calls[op].fetch_add(1, std::memory_order_relaxed); }

// Where an operator has its arguments, whose names have a space between two; -1 for one that it lacks.
struct Places {
  std::string_view names;
  int x = of("x"), weight = of("weight"), bias = of("bias"), eps = of("eps"), weight_offset = of("weight_offset");
  int norm_before_gate = of("norm_before_gate"), activation = of("activation"), group_size = of("group_size");
  int fmt = of("fmt"), scale_ub = of("scale_ub"), scale = of("scale");
  int normed = of("normed"), out = of("out"), scales_out = of("scales_out");
  int dout = of("dout"), dx = of("dx"), dz = of("dz"), dweight = of("dweight"), dbias = of("dbias");
  int earlier = of("earlier");
  bool adds = of("residual") >= 0, is_gated = of("z") >= 0, is_quantized = scales_out >= 0;
  bool drops_sum = adds && !is_quantized && out >= 0;
  int second = std::max({of("residual"), of("z"), of("ds_more")});  // none has two of them

  constexpr explicit Places(std::string_view given) : names(given) {}

 private:
  constexpr int of(std::string_view name) const {
    std::string_view left = names;
    for (int place = 0; !left.empty(); ++place) {
      const std::string_view next = left.substr(0, left.find(' '));
      if (next == name) return place;
      left.remove_prefix(std::min(left.size(), next.size() + 1));
    }
    return -1;
  }
};

// eps is at least 0, and both are finite in fp32. NaN is neither.
inline Refusal read_numbers(double eps, double weight_offset, NormSpec* spec) {
  constexpr double kMaxFloat = std::numeric_limits<float>::max();
  spec->eps = eps;
  spec->weight_offset = static_cast<float>(weight_offset);
  if (!(std::abs(weight_offset) <= kMaxFloat)) return {"weight_offset", " is not finite"};
  return eps >= 0 && eps <= kMaxFloat ? Refusal{} : Refusal{"eps", " is negative or not finite"};
}

// What calls of norms and of their gradients have.
struct CallOfNorm {
  NormSpec spec{};
  TensorView x;
  TensorView second;  // what is added, or the gate; x where `has_second` is false
  bool has_second;

 protected:
  TensorView weight, bias;  // where spec has them

  template <class Op>
  Refusal read_spec(const Arguments& arguments) {
    constexpr Places at(Op::kArguments);
    x = TensorView(arguments.tensor(at.x));
    if (const Refusal refusal = x.read_rows("x", &spec.dtype)) return refusal;
    spec.size = spec.group_size = x.row_size();
    const double weight_offset = at.weight_offset < 0 ? 0.0 : arguments.number(at.weight_offset);
    if (const Refusal refusal = read_numbers(arguments.number(at.eps), weight_offset, &spec)) return refusal;
    if constexpr (at.is_gated) {
      spec.norm_before_gate = arguments.boolean(at.norm_before_gate);
      const std::string_view activation = arguments.text(at.activation);
      spec.silu = activation == "silu" || activation == "swish";
      if (!spec.silu && activation != "sigmoid") return {"activation", " is not known"};
      spec.group_size = arguments.optional_int(at.group_size, spec.size);
      if (spec.group_size <= 0 || spec.size % spec.group_size != 0) return {"group_size", " does not divide N"};
    }
    const AtenTensorHandle given = arguments.tensor(at.second);
    has_second = given != nullptr;
    second = has_second ? TensorView(given) : x;
    // Like x, or a residual in fp32 beside half precision.
    static const int32_t float32 = aoti_torch_dtype_float32();
    spec.fp32_residual = at.adds && second.dtype != x.dtype;
    if (const Refusal refusal =
            second.read_rows_like(at.is_gated ? "z" : "residual", x, spec.fp32_residual ? float32 : x.dtype))
      return refusal;
    if (const Refusal refusal = read_param("weight", arguments.tensor(at.weight), &weight, &spec.weight))
      return refusal;
    return read_param("bias", arguments.tensor(at.bias), &bias, &spec.bias);
  }

 private:
  Refusal read_param(const char* name, AtenTensorHandle tensor, TensorView* view, Param* param) const {
    if (tensor == nullptr) return {};
    *view = TensorView(tensor);
    return view->read_vector(name, spec.size, x, spec.dtype, param);
  }
};

static_assert(RowSpace<1>::kMaxDims == 6, "kTooManyDims says so");

struct NormCall : CallOfNorm {
  Op op;
  TensorView normed;  // where the rows go, in x's dtype; x where `has_normed` is false
  bool has_normed;
  TensorView earlier;  // of kFusedAddTwoRmsNorm, added to the residual before x, in its strides; else x
  bool is_gated, is_quantized;
  QuantResult result;  // where `is_quantized`; otherwise result.q is x
  RowSpace<4> space;   // of x, second, normed and result.q

  template <class Op>
  Refusal read(const Arguments& arguments) {
    constexpr Places at(Op::kArguments);
    if (const Refusal refusal = read_spec<Op>(arguments)) return refusal;
    is_gated = at.is_gated;
    is_quantized = at.is_quantized;
    if (is_gated) op = is_quantized ? kRmsNormGatedQuant : kRmsNormGated;
    else if (at.drops_sum) op = kRmsNormOfSum;
    else if (at.earlier >= 0) op = kFusedAddTwoRmsNorm;
    else if (has_second) op = is_quantized ? kFusedAddRmsNormQuant : kFusedAddRmsNorm;
    else op = is_quantized ? kRmsNormQuant : kRmsNorm;
    const AtenTensorHandle given = arguments.tensor(at.is_quantized ? at.normed : at.out);
    has_normed = given != nullptr;
    normed = has_normed ? TensorView(given) : x;
    Memory memory;
    const bool in_place = op == kFusedAddRmsNorm || op == kFusedAddTwoRmsNorm, keeps_second = is_gated || at.drops_sum;
    memory.add("x", x, in_place ? Memory::kWritten : Memory::kMayBecomeNormed);
    if (has_second)
      memory.add(is_gated ? "z" : "residual", second, keeps_second ? Memory::kMayBecomeNormed : Memory::kWritten);
    earlier = x;
    if constexpr (at.earlier >= 0) {
      earlier = TensorView(arguments.tensor(at.earlier));
      if (const Refusal refusal = earlier.read_rows_like("earlier", x, x.dtype)) return refusal;
      if (!earlier.has_strides_of(second)) return {"earlier", " is not laid out as residual"};
      memory.add("earlier", earlier, Memory::kRead);
    }
    if (spec.weight.data != nullptr) memory.add("weight", weight, Memory::kRead);
    if (spec.bias.data != nullptr) memory.add("bias", bias, Memory::kRead);
    if (has_normed) {
      const char* name = is_quantized ? "normed" : "out";
      if (const Refusal refusal = normed.read_rows_like(name, x, x.dtype)) return refusal;
      memory.add(name, normed, Memory::kNormed);
    }
    result.q = x;
    if constexpr (at.is_quantized) {
      if (const Refusal refusal = read_result<Op>(arguments, &memory)) return refusal;
    }
    if (const Refusal refusal = memory.why_not()) return refusal;
    const bool few =
        space.build(x.num_dims - 1, x.sizes, {x.strides, second.strides, normed.strides, result.q.strides});
    return few ? Refusal{} : kTooManyDims;
  }

 private:
  template <class Op>
  Refusal read_result(const Arguments& arguments, Memory* memory) {
    constexpr Places at(Op::kArguments);
    if (!read_format<Op>(arguments)) return {"fmt", " is not known"};
    if (arguments.tensor(at.scale_ub) != nullptr) return {"scale_ub", " is not None"};
    if constexpr (at.is_gated) {
      if (const Refusal refusal = why_not_groups()) return refusal;
    }
    if (const Refusal refusal = result.read(arguments.tensor(at.scale), arguments.tensor(at.out),
                                            arguments.tensor(at.scales_out), x, memory))
      return refusal;
    return x.on_cuda() ? Refusal{} : why_not_on_cpu();
  }
  // vLLM's operators have no format: it follows from their results, and `group_size` says whether scales have groups.
  template <class Op>
  bool read_format(const Arguments& arguments) {
    constexpr Places at(Op::kArguments);
    if constexpr (at.fmt >= 0) return serving_ops::read_format(arguments.text(at.fmt), &result.format);
    const bool int8 = TensorView(arguments.tensor(at.out)).dtype == aoti_torch_dtype_int8();
    result.format = {int8, QuantFormat::kToken, 0, ScaleForm::fp32, QuantFormat::kRowMajor};
    if constexpr (at.group_size >= 0) {
      result.format.granularity = QuantFormat::kGroup;
      result.format.group_size = arguments.integer(at.group_size);
      return result.format.group_size == 64 || result.format.group_size == 128;
    }
    return true;
  }
  // There one form has kernels.
  Refusal why_not_on_cpu() const {
    const QuantFormat& format = result.format;
    if (!format.int8) return {"", "FP8 on CPU stays on the reference"};
    if (spec.fp32_residual) return {"residual", ".dtype is float32, which int8 on CPU has no kernel for"};
    if (format.granularity != QuantFormat::kToken || format.scale_form != ScaleForm::fp32)
      return {"", "int8 on CPU has a kernel for an fp32 scale a row alone"};
    return {};
  }
  // A program, which has one gated group of a row, must be able to write its scales: `why_not_scales` in
  // serving_ops/cuda.py, of what a variant does not tell apart.
  Refusal why_not_groups() const {
    const QuantFormat& format = result.format;
    const int64_t groups = spec.size / spec.group_size, scales = spec.group_size / format.group_size;
    if (groups > kMaxGroups) return {"norm_group_size", " makes more groups than a CUDA grid holds"};
    const bool by_group = format.granularity == QuantFormat::kGroup;
    const bool shared = format.granularity == QuantFormat::kToken ||
                        (by_group && format.scale_form == ScaleForm::ue8m0 && scales % 4 != 0);
    return groups > 1 && shared ? Refusal{"fmt", " has scales that several gated groups share"} : Refusal{};
  }
};

// A call of the gradients. The results are new tensors of this library's making, so only what is read can be refused;
// what is read may overlap.
struct BackwardCall : CallOfNorm {
  TensorView dout, dx, dsecond;  // the last is dx where there is no gate
  bool is_gated;
  TensorView dweight, dbias;  // of the dtypes of spec.weight and spec.bias, where those are
  RowSpace<5> space;          // of dout, x, second, dx and dsecond

  template <class Op>
  Refusal read(const Arguments& arguments) {
    constexpr Places at(Op::kArguments);
    if (const Refusal refusal = read_spec<Op>(arguments)) return refusal;
    is_gated = at.is_gated;
    dout = TensorView(arguments.tensor(at.dout));
    if (const Refusal refusal = dout.read_rows_like("dout", x, x.dtype)) return refusal;
    dsecond = dx = TensorView(arguments.tensor(at.dx));
    if (is_gated && has_second) dsecond = TensorView(arguments.tensor(at.dz));
    dweight = TensorView(arguments.tensor(at.dweight));
    if (is_gated) dbias = TensorView(arguments.tensor(at.dbias));
    const bool few = space.build(x.num_dims - 1, x.sizes,
                                 {dout.strides, x.strides, second.strides, dx.strides, dsecond.strides});
    return few ? Refusal{} : kTooManyDims;
  }
};

}  // namespace serving_ops
