"""Has SGLang's engine on CPU call for a quantized model what it would on a GPU.

`stand_in/observe.py` registers it in a process that has the variable `AS_ON_A_GPU`.
"""

from __future__ import annotations

import os
from typing import Any

VARIABLE = "AS_ON_A_GPU"
LOAD = "sglang.srt.model_executor.model_runner.ModelRunner.load_model"


def register() -> None:
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    HookRegistry.register(LOAD, _before_loading, HookType.BEFORE)


def _before_loading(*_: Any, **__: Any) -> None:
    import fp8_on_cpu
    import pytest
    from sglang.srt.layers.quantization.compressed_tensors.compressed_tensors import CompressedTensorsConfig

    patch = pytest.MonkeyPatch()
    fp8_on_cpu.install(patch)
    patch.setattr(CompressedTensorsConfig, "_check_scheme_supported", lambda *_, **__: True)
    if os.environ["SERVING_OPS"] != "off":
        _take_what_is_taken_on_cuda(patch)


def _take_what_is_taken_on_cuda(patch: Any) -> None:
    from sglang.srt.models import utils

    from serving_ops.integrations.sglang import layers, qk_norm_rope_layer, quantizing_rms_norm

    found = layers.survey

    def with_attentions(runner: Any) -> Any:
        x = layers.Activations(runner.dtype, runner.model_config.hidden_size)
        return found(runner) + layers._attentions(runner, x)

    patch.setattr(quantizing_rms_norm, "why_reference", lambda specs: None)
    patch.setattr(layers, "why_reference", lambda specs: None)
    patch.setattr(qk_norm_rope_layer, "why_not_there", lambda args: None)
    patch.setattr(layers, "survey", with_attentions)
    patch.setattr(utils, "enable_fused_set_kv_buffer", lambda forward_batch: True)
