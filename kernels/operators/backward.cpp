// The gradients on CPU. Tensors have the leading dimensions `sizes`, and strides in elements for each; dtypes are Dtype's.
// What is not given or not wanted is null. 0 where it ran.
#include "../cpu/run_backward.h"
#include "export.h"

using namespace serving_ops;
using cpu::Operand;

SERVING_OPS_EXPORT int serving_ops_cpu_rms_norm_backward(
    int dtype, int64_t size, double eps, double weight_offset, int64_t num_dims, const int64_t* sizes, void* dout,
    const int64_t* dout_strides, void* s, const int64_t* s_strides, void* more, const int64_t* more_strides, void* ds,
    const int64_t* ds_strides, const void* weight, void* dweight, int weight_dtype) {
  const auto of_weight = static_cast<Dtype>(weight_dtype);
  const NormSpec spec{size, eps, static_cast<float>(weight_offset), static_cast<Dtype>(dtype), {weight, of_weight}};
  return cpu::run(cpu::BackwardCall{spec,
                                    num_dims,
                                    sizes,
                                    {dout, dout_strides},
                                    {s, s_strides},
                                    {more, more_strides},
                                    {ds, ds_strides},
                                    {dweight, of_weight}});
}

SERVING_OPS_EXPORT int serving_ops_cpu_rms_norm_gated_backward(
    int dtype, int64_t size, int64_t group_size, double eps, int norm_before_gate, int silu, int64_t num_dims,
    const int64_t* sizes, void* dout, const int64_t* dout_strides, void* x, const int64_t* x_strides, void* z,
    const int64_t* z_strides, void* dx, const int64_t* dx_strides, void* dz, const int64_t* dz_strides,
    const void* weight, void* dweight, int weight_dtype, const void* bias, void* dbias, int bias_dtype) {
  const auto of_weight = static_cast<Dtype>(weight_dtype), of_bias = static_cast<Dtype>(bias_dtype);
  const GatedNormSpec spec{size,
                           group_size,
                           eps,
                           static_cast<Dtype>(dtype),
                           {weight, of_weight},
                           {bias, of_bias},
                           norm_before_gate != 0,
                           silu != 0};
  return cpu::run(cpu::GatedBackwardCall{spec,
                                         num_dims,
                                         sizes,
                                         {dout, dout_strides},
                                         {x, x_strides},
                                         {z, z_strides},
                                         {dx, dx_strides},
                                         {dz, dz_strides},
                                         {dweight, of_weight},
                                         {dbias, of_bias}});
}
