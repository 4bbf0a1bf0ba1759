// For Python, through ctypes (serving_ops/extension.py).
#pragma once

#define SERVING_OPS_EXPORT extern "C" __attribute__((visibility("default")))
