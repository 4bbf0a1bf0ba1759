"""Models to serve without a download: a config.json and a word-level tokenizer; weights are made up at load.

Speed does not depend on the weights' values: the shapes of a known model are enough. `presets.json` has them:

- dense is Qwen3-0.6B, dense-8b is Qwen3-8B, mamba2 is mamba2-780m, whose gated norm has one group of 3072. On CPU they
  have fewer layers, and dense a smaller vocabulary: one decode step stays near 10 ms on 2 cores, and the norms keep
  their share of it.
- hybrid has three gated-delta-net layers to one of full attention. On CPU it is a Qwen3-Next, which vLLM loads only if
  one of its layers, here the last, is a mixture of experts. On CUDA it is a dense Qwen3.5, which also runs where vLLM's
  MoE library is missing. By its `arguments` engines leave its pictures out. SGLang builds the tower all the same, and
  is kept off a library that attention elsewhere may not need.

`quantizations.json` names each way to quantize linear layers in a reader's words. Beside them is what a checkpoint's
config.json says, or the engine's `quantization`, which quantizes while it loads. Scales are made up too.
"""

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PRESETS: dict[str, dict[str, dict[str, Any]]] = json.loads((HERE / "presets.json").read_text())
QUANTIZATIONS: dict[str, dict[str, Any]] = json.loads((HERE / "quantizations.json").read_text())
CHECKPOINTS = {name: of["checkpoint"] for name, of in QUANTIZATIONS.items() if "checkpoint" in of}
WHILE_LOADING = {name: of["while_loading"] for name, of in QUANTIZATIONS.items() if "while_loading" in of}

QUANTIZED = ("dense", "dense-8b")  # with one of QUANTIZATIONS
TOKENIZER = "tokenizer"  # a folder in that of a preset
MAX_POSITIONS = 16384  # tokens; longer prompts need a real model

# vLLM refuses a prompt with more characters than tokens fit, times the longest token's length. Each word brings a space
# that no token has, so the longest token must be longer than a word and a space.
SPECIAL_TOKENS = ("<|unknown|>", "<|end of text|>")

# What SGLang needs where the CPU has no AMX. Overlap is with a GPU's work.
SGLANG_ON_CPU: dict[str, Any] = {
    "device": "cpu",
    "attention_backend": "torch_native",
    "sampling_backend": "pytorch",
    "grammar_backend": "none",
    "disable_cuda_graph": True,
    "disable_overlap_schedule": True,
}


def said(model: str) -> str:
    """A model's label in a result, such as `preset dense-fp8-block`, in a reader's words."""
    name = model.removeprefix("preset ")
    for quantization, of in QUANTIZATIONS.items():
        if name.endswith(f"-{quantization}"):
            return f"{name.removesuffix(f'-{quantization}')} ({of['said']})"
    return name


def write_preset(name: str, directory: Path, device: str = "cpu", quantized: str | None = None) -> Path:
    """Write preset `name` for `device` ("cpu" or "cuda") into `directory` and return it.

    quantized: one of QUANTIZATIONS, for a preset in QUANTIZED.

    The tokenizer lies in a folder of its own: beside a Qwen3.5's config.json transformers reads it as that model's
    tokenizer class.
    """
    config = preset_config(name, device)
    if quantized in CHECKPOINTS:
        config["quantization_config"] = CHECKPOINTS[quantized]
    tokenizer = directory / TOKENIZER
    tokenizer.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    _write_tokenizer(tokenizer, config.get("text_config", config)["vocab_size"])
    return directory


def preset_config(name: str, device: str) -> dict[str, Any]:
    return {**PRESETS[name]["all"], **PRESETS[name][device]}


def preset_engine_args(name: str, device: str, engine: str = "vllm", quantized: str | None = None) -> dict[str, Any]:
    """What an engine has to be told beside the path: that there are no weights on disk, and what the preset needs."""
    needed = PRESETS[name].get("arguments", {}).get(device, {}).get(engine, {})
    return {"load_format": "dummy", **needed, **loading_args(quantized)}


def loading_args(quantized: str | None) -> dict[str, Any]:
    """What an engine has to be told to quantize while it loads."""
    return {"quantization": WHILE_LOADING[quantized]} if quantized in WHILE_LOADING else {}


def _write_tokenizer(folder: Path, vocab_size: int) -> None:
    """One word a token, so a prompt of n random tokens survives decoding and encoding with its length."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = [*SPECIAL_TOKENS, *(f"w{index}" for index in range(len(SPECIAL_TOKENS), vocab_size))]
    unknown, end = SPECIAL_TOKENS
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": unknown, "eos_token": end}
    settings |= {"model_max_length": MAX_POSITIONS, "clean_up_tokenization_spaces": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    # vLLM looks for a configuration beside the tokenizer, twice and two seconds apart if there is none. The version
    # keeps transformers from taking it for an old Mistral tokenizer, and warning.
    beside = {"model_type": "qwen3", "transformers_version": "5.0.0"}
    (folder / "config.json").write_text(json.dumps(beside))
