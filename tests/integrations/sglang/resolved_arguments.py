"""What SGLang makes of its arguments for models of every quantization, with the plugin off and then on.

Run by path, in a process that imports the SGLang to look at: prints JSON.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from serving_ops.bench_e2e import presets
from serving_ops.bench_e2e.presets import QUANTIZATIONS


def _text(value: Any) -> str:
    """An argument, or what is in an object, without where it lies in memory."""
    return re.sub(" at 0x[0-9a-f]+", "", repr(getattr(value, "__dict__", value)))


def _resolved(folder: Path, quantized: str | None) -> dict[str, str]:
    from sglang.srt.server_args import ServerArgs

    model = presets.write_preset("dense", folder / str(quantized), quantized=quantized)
    arguments = {**presets.SGLANG_ON_CPU, **presets.preset_engine_args("dense", "cpu", "sglang", quantized)}
    args = ServerArgs(model_path=str(model), skip_tokenizer_init=True, random_seed=1, **arguments)
    return {name: _text(value) for name, value in vars(args).items()}


def _of_all(folder: Path) -> dict[str, dict[str, str]]:
    return {str(quantized): _resolved(folder, quantized) for quantized in (None, *QUANTIZATIONS)}


def main() -> None:
    from sglang.srt.plugins import load_plugins

    with tempfile.TemporaryDirectory() as folder:
        os.environ["SERVING_OPS"] = "off"
        off = _of_all(Path(folder))
        os.environ["SERVING_OPS"] = "strict"
        from serving_ops.integrations.sglang import register

        register()
        load_plugins()
        print(json.dumps({"off": off, "on": _of_all(Path(folder))}), file=sys.__stdout__)


if __name__ == "__main__":
    main()
