// The CUDA driver that torch has loaded, without its headers: what is declared here is the driver's stable ABI
// (cuda.h, CUlaunchConfig and CUlaunchAttribute; tests/kernels/cuda compares them with that header).
#pragma once

#include <cstdint>

namespace serving_ops::cuda {

constexpr int kProgrammaticStreamSerialization = 6;  // CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION

struct LaunchAttribute {
  int id;
  int padding;
  union {
    int programmatic_stream_serialization_allowed;
    char bytes[64];
  } value;
};

struct LaunchConfig {
  uint32_t grid_x, grid_y, grid_z;
  uint32_t block_x, block_y, block_z;
  uint32_t shared_bytes;
  void* stream;
  LaunchAttribute* attributes;
  uint32_t num_attributes;
};

struct Driver {
  int (*launch)(const LaunchConfig*, void* function, void** parameters, void** extra);  // cuLaunchKernelEx
  int (*current_device)(int* device);                                                  // cuCtxGetDevice
  int (*retain_primary_context)(void** context, int device);                           // cuDevicePrimaryCtxRetain
  int (*push_context)(void* context);                                                  // cuCtxPushCurrent
  int (*pop_context)(void** context);                                                  // cuCtxPopCurrent
  int32_t (*current_stream)(int32_t device, void** stream);                            // of torch, on that device
};

// Null where there is none; looked for once.
const Driver* driver();

}  // namespace serving_ops::cuda
