// The CUDA half of the library on CPU tensors: its reading of a call, its lookup and its launch, with a driver that only
// remembers. Built by test_fake_device.py, with aoti_torch_device_type_cuda renamed to that of the CPU and
// aoti_torch_get_device_index to the function below.
#include <torch/csrc/stable/library.h>

#include <cstring>
#include <vector>

#include "../../../kernels/cpu/isa.h"
#include "../../../kernels/cuda/driver.h"
#include "../../../kernels/cuda/run.h"
#include "../../../kernels/operators/operators.h"

namespace {

constexpr int kMaxParameters = serving_ops::cuda::Recipe::kMaxParameters;
int num_parameters;  // of the variant added last

struct {
  uint64_t launches, function, grid_x, grid_y, block_x, shared_bytes, attributes;
  uint64_t context, pushes;
  uint64_t parameters[kMaxParameters];
} last;

// Where the tensors are, and the contexts: `fresh` is a thread's that has not used CUDA.
constexpr int kFresh = -1;
int device_of_tensors = 0, current = 0;
std::vector<int> pushed;
int result_of_launch = 0;

void* context_of(int device) { return reinterpret_cast<void*>(static_cast<uintptr_t>(0x100 + device)); }

int launch(const serving_ops::cuda::LaunchConfig* config, void* function, void** parameters, void**) {
  ++last.launches;
  last.function = reinterpret_cast<uintptr_t>(function);
  last.grid_x = config->grid_x;
  last.grid_y = config->grid_y;
  last.block_x = config->block_x;
  last.shared_bytes = config->shared_bytes;
  last.attributes = config->num_attributes;
  for (int i = 0; i < num_parameters; ++i) std::memcpy(&last.parameters[i], parameters[i], sizeof(uint64_t));
  last.context = reinterpret_cast<uintptr_t>(context_of(current));
  return result_of_launch;
}

int current_device(int* device) {
  constexpr int kInvalidContext = 201;
  *device = current;
  return current == kFresh ? kInvalidContext : 0;
}
int retain_primary_context(void** context, int device) { return *context = context_of(device), 0; }
int push_context(void* context) {
  ++last.pushes;
  pushed.push_back(current);
  current = static_cast<int>(reinterpret_cast<uintptr_t>(context) - 0x100);
  return 0;
}
int pop_context(void** context) {
  *context = context_of(current);
  current = pushed.back();
  pushed.pop_back();
  return 0;
}
int32_t current_stream(int32_t, void** stream) { return *stream = nullptr, 0; }

}  // namespace

extern "C" AOTITorchError fake_get_device_index(AtenTensorHandle, int32_t* index) {
  *index = device_of_tensors;
  return 0;
}

namespace serving_ops {

namespace cuda {
const Driver* driver() {
  static const Driver remembering{launch,       current_device, retain_primary_context,
                                  push_context, pop_context,    current_stream};
  return &remembering;
}
}  // namespace cuda

namespace cpu {
const Kernels& chosen_kernels() {  // never called: no call comes to the CPU's half here
  static const Kernels none{};
  return none;
}
}  // namespace cpu

}  // namespace serving_ops

STABLE_TORCH_LIBRARY_IMPL(serving_ops_fake, CPU, library) {
  using namespace serving_ops;
#define CUDA(name, function) library.impl(#name, &function);
#include "../../../kernels/contract.def"
}

extern "C" const void* fake_last() { return &last; }
extern "C" void fake_devices(int of_tensors, int of_thread, int result) {
  device_of_tensors = of_tensors;
  current = of_thread;
  result_of_launch = result;
}
extern "C" int fake_current() { return current; }

extern "C" void fake_add(uint64_t flags, int64_t size, int64_t group_size, int64_t min_rows, int64_t max_rows,
                         int64_t rows_per_program, void* function, uint32_t num_warps, uint32_t shared_bytes,
                         int dependent, const uint8_t* parameters, int count) {
  num_parameters = count;
  serving_ops::cuda::variants().add({flags, size, group_size}, {min_rows, max_rows, rows_per_program, function,
                                                                32 * num_warps, shared_bytes, dependent != 0,
                                                                serving_ops::cuda::Recipe(parameters, count)});
}
