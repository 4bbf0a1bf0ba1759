"""Which machine, which versions, which command, without secrets: what a figure needs beside it to mean anything."""

import json
import os
import platform
import re
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from serving_ops.doctor import DISTRIBUTIONS, PLUGIN_GROUPS, version_of
from serving_ops.version import __version__

COMMAND = "python -m serving_ops.bench_e2e"
TITLES = {"vllm": "vLLM", "sglang": "SGLang"}
"""The engines that are measured."""
RECORDED = ("VLLM_", "SGLANG_", "SERVING_OPS")  # prefixes of the variables that decide figures
REDACTED = "REDACTED"
SECRET = re.compile(r"(keys?|token|secrets?|passw(or)?d|passphrase|credentials?|auth(orization)?)$", re.IGNORECASE)
"""How a secret's name ends: API_KEY, hf-token or apiKey, and not tokenizer, max_num_batched_tokens or ssl_keyfile."""
USER_IN_URL = re.compile(r"(?<=://)[^/\s@]+(?=@)")


def versions() -> dict[str, str]:
    """Of serving_ops, Python and what decides the speed; "absent" where not installed."""
    found = {engine: engine_version(engine) for engine in TITLES}
    found |= {name: version_of(name) for name in ("torch", "triton", "transformers", "flashinfer-python")}
    found = {name: version or "absent" for name, version in found.items()}
    return {"serving_ops": __version__, **found, "python": platform.python_version()}


def command_line(command: str, words: Sequence[str]) -> str:
    """A command with the variables its caller set, which decide the figures as options do. Secrets are left out."""
    names = sorted(name for name in os.environ if name.startswith(RECORDED))
    chosen = [f"{name}={without_secrets(os.environ[name], name)}" for name in names]
    return shlex.join([*chosen, *command.split(), *map(_without_secrets_in_json, words)])


def without_secrets(value: Any, name: str = "") -> Any:
    """What JSON can hold, with REDACTED for what has a secret's name, and for a URL's user."""
    if SECRET.search(name) and value not in (None, True, False):
        return REDACTED
    if isinstance(value, Mapping):
        return {key: without_secrets(entry, str(key)) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_secrets(entry) for entry in value]
    return USER_IN_URL.sub(REDACTED, value) if isinstance(value, str) else value


def _without_secrets_in_json(word: str) -> str:
    """A word of a command, which may be `--option={...}`."""
    option, text = re.fullmatch(r"(--[\w-]+=)?(.*)", word, re.DOTALL).groups("")  # type: ignore[union-attr]
    try:
        return option + json.dumps(without_secrets(json.loads(text))) if text.startswith("{") else without_secrets(word)
    except ValueError:
        return str(without_secrets(word))


def engine_version(engine: str = "vllm") -> str | None:
    """An engine's version, marked `+cpu` for a CPU build of vLLM; None where it is not installed."""
    found = {name: version for name in DISTRIBUTIONS[engine] if (version := version_of(name))}
    distribution, version = next(iter(found.items()), (engine, None))
    return version if version is None or distribution == engine or "cpu" in version else f"{version}+cpu"


def plugin_installed(engine: str = "vllm") -> bool:
    """Whether the engine would find our plugin: it looks for entry points, not for an importable package."""
    return bool(metadata.entry_points(group=PLUGIN_GROUPS[engine], name="serving_ops"))


def detect_device(engine: str = "vllm") -> str:
    """Where the engine is a CUDA build and a GPU answers, "cuda", else "cpu". Makes no CUDA context.

    SGLang has no builds: it runs on what its torch was built for.
    """
    build = version_of("torch") if engine == "sglang" and engine_version(engine) else engine_version(engine)
    return "cuda" if "cpu" not in (build or "cpu") and gpu_name() else "cpu"


def hardware() -> dict[str, Any]:
    """cores: that this process may use."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0))
    named = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    cpu = named[1].strip() if named else platform.machine()
    return {"cpu": cpu, "cores": cores, "memory_gib": round(memory, 1), "gpu": gpu_name()}


def gpu_name() -> str | None:
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.split("\n")[0].strip() or None
