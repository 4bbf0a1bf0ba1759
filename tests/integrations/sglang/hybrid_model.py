"""Run by path: hybrid_model.py DIRECTORY writes the vLLM tests' hybrid, Qwen3-Next, as SGLang reads it.

SGLang has experts in every layer; one that all tokens share needs Triton there, so there is none. Its configuration
says every how many layers attention is full.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "vllm"))

import models


def _drop_the_shared_expert(weights: Path) -> None:
    from safetensors.torch import load_file, save_file

    kept = {name: tensor for name, tensor in load_file(weights).items() if "shared_expert" not in name}
    save_file(kept, weights, {"format": "pt"})


def main() -> None:
    target = Path(sys.argv[1])
    config = models.hybrid_config()
    config.mlp_only_layers = []
    config.shared_expert_intermediate_size = 0
    models.CONFIGS["hybrid"] = lambda: config
    models.write_model("hybrid", target)
    _drop_the_shared_expert(target / "model.safetensors")
    file = target / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"full_attention_interval": 2}))


if __name__ == "__main__":
    main()
