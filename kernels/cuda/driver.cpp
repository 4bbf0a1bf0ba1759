#include "driver.h"

#include <dlfcn.h>

namespace serving_ops::cuda {
namespace {

template <class Function>
bool resolve(const char* library, const char* name, Function** function) {
  void* handle = dlopen(library, RTLD_LAZY | RTLD_NOLOAD);  // what torch loaded, or nothing
  *function = handle == nullptr ? nullptr : reinterpret_cast<Function*>(dlsym(handle, name));
  return *function != nullptr;
}

bool load(Driver* driver) {
  return resolve("libcuda.so.1", "cuLaunchKernelEx", &driver->launch) &&
         resolve("libcuda.so.1", "cuCtxGetDevice", &driver->current_device) &&
         resolve("libcuda.so.1", "cuDevicePrimaryCtxRetain", &driver->retain_primary_context) &&
         resolve("libcuda.so.1", "cuCtxPushCurrent_v2", &driver->push_context) &&
         resolve("libcuda.so.1", "cuCtxPopCurrent_v2", &driver->pop_context) &&
         resolve("libtorch_cuda.so", "aoti_torch_get_current_cuda_stream", &driver->current_stream);
}

}  // namespace

const Driver* driver() {
  static Driver loaded;
  static const bool there = load(&loaded);
  return there ? &loaded : nullptr;
}

}  // namespace serving_ops::cuda
