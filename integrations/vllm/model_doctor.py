"""`python -m serving_ops doctor --model PATH`: the start-up line that vLLM would print for a model, without serving it.

The model's layers are built as vLLM builds them, on the meta device: no weights, no memory, one rank.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import torch

from serving_ops import settings
from serving_ops.integrations.vllm import features, register, startup


def examine(model: str, *, eager: bool) -> str:
    """What would be on for the model at a path or of a name, in vLLM's eager or compiled mode.

    Raises what vLLM raises for a model or an installation that it cannot serve.
    """
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")  # our line alone is for stdout
    if settings.mode() == "off":
        os.environ["SERVING_OPS"] = ",".join(("auto", *sorted(settings.ops())))
    register()
    from vllm.engine.arg_utils import EngineArgs  # behind the plugin, as vLLM imports it

    config = EngineArgs(model=model, enforce_eager=eager, skip_tokenizer_init=True).create_engine_config()
    config.kernel_config.ir_op_priority.set_default()
    features.install_for(config, strict=False)
    device = torch.device(config.device_config.device)
    found = startup.survey([_build(config)], config, device)
    return startup.describe(found, str(device), f"as vLLM would serve it {'eager' if eager else 'compiled'}")


def _build(config: Any) -> torch.nn.Module:
    from vllm.config import set_current_vllm_config
    from vllm.distributed import parallel_state
    from vllm.model_executor.model_loader.utils import initialize_model
    from vllm.utils.torch_utils import set_default_torch_dtype

    with tempfile.TemporaryDirectory() as folder, set_current_vllm_config(config):
        rendezvous = (Path(folder) / "rendezvous").as_uri()
        parallel_state.init_distributed_environment(1, 0, rendezvous, 0, "gloo")
        parallel_state.ensure_model_parallel_initialized(1, 1)
        try:
            with torch.device("meta"), set_default_torch_dtype(config.model_config.dtype):
                return initialize_model(config)
        finally:
            parallel_state.destroy_model_parallel()
            parallel_state.destroy_distributed_environment()
