"""What tests of the plugin inside this process share: the device, the sizes of a model, its layers."""

from __future__ import annotations

import dis
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from serving_ops import NormSpec, settings
from serving_ops.integrations.vllm import ir_providers, layers
from serving_ops.integrations.vllm.layers import NormLayer

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

HIDDEN, HEAD = 256, 128
FUSED = "auto, with q and k in one call"
"""A switch of the engines that tests start: `auto`, and `qk_norm_rope` is on wherever it fits, on its reference too."""
OURS_FIRST = [ir_providers.PROVIDER, "native"]
SPEC = NormSpec("rms_norm", 256, torch.bfloat16, torch.bfloat16, DEVICE)


def rows(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(DEVICE, dtype)


def imports_at_each_call(function: Any) -> bool:
    """Whether a function imports: 0.5 us of each call, which eager mode waits for."""
    return any(instruction.opname == "IMPORT_NAME" for instruction in dis.get_instructions(function))


def no_operator_may_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call of any operator of ours fails the test."""
    for op in settings.OPS:
        monkeypatch.setattr(torch.ops.serving_ops, op, lambda *_, **__: pytest.fail("the operator ran"))


def model_config(**more: Any) -> Any:
    sizes = {"get_hidden_size": lambda: HIDDEN, "get_head_size": lambda: HEAD}
    return SimpleNamespace(**{"dtype": torch.bfloat16, "quantization": None, "enforce_eager": True, **sizes, **more})


def vllm_config(quant_config: Any = None, **more: Any) -> Any:
    """What the plugin reads of a VllmConfig."""
    eager = SimpleNamespace(mode=SimpleNamespace(name="NONE"))
    return SimpleNamespace(model_config=model_config(**more), quant_config=quant_config, compilation_config=eager)


def survey(model: torch.nn.Module, quant_config: Any = None) -> list[NormLayer]:
    return layers.survey([model], vllm_config(quant_config), DEVICE)


def fp8_linear(kernel: str = "CutlassFP8ScaledMMLinearKernel", key: str = "kFp8DynamicTokenSym") -> Any:
    """A linear layer whose kernel of this class, made without its constructor, has this key for its input."""
    from vllm.model_executor.kernels.linear.scaled_mm import cutlass, flashinfer, marlin
    from vllm.model_executor.layers.linear import LinearBase
    from vllm.model_executor.layers.quantization.utils import quant_utils

    cls = next(getattr(module, kernel) for module in (cutlass, flashinfer, marlin) if hasattr(module, kernel))
    made = cls.__new__(cls)
    made.config = SimpleNamespace(activation_quant_key=getattr(quant_utils, key))
    linear = LinearBase.__new__(LinearBase)
    torch.nn.Module.__init__(linear)
    linear.quant_method = SimpleNamespace(fp8_linear=made)
    return linear
