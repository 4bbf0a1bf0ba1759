"""vLLM's compile-cache keys tell engines with serving_ops from those without, and its versions apart.

vLLM hashes its known environment variables into every compile-cache key, but neither plugins nor out-of-tree
classes. It also copies the variables that it knows to its Ray workers, so all of ours become known to it.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

import serving_ops
from serving_ops import extension, settings
from serving_ops.integrations.vllm import installed, mixer_gate, mixer_output, norm_pairs, qk_norm_rope_layer

VARIABLE = settings.CHOICE.name
"""Its factor stands for all that changes compiled code."""

FOLDERS = ("ops", "training", "integrations/common", "integrations/vllm", "kernels/triton")
"""Folders that a compiled graph of vLLM's depends on. A regular install has all inside the package."""


def sources() -> dict[str, Path]:
    """The Python files that compiled graphs depend on, by their path inside an installed package."""
    found = {file.name: file for file in Path(serving_ops.__file__).parent.glob("*.py")}
    for root in map(Path, serving_ops.__path__):
        for folder in FOLDERS:
            found |= {file.relative_to(root).as_posix(): file for file in (root / folder).rglob("*.py")}
    return found


@cache
def source_hash() -> str:
    """A hash of those files: the same on every rank of one version, however it was installed."""
    files = sorted((name, file.read_bytes()) for name, file in sources().items())
    return hashlib.sha256(repr(files).encode()).hexdigest()[:16]


def compile_key() -> str:
    """What vLLM hashes for `VARIABLE`: version, source hash, settings, what stays vLLM's, which attention layers call
    `qk_norm_rope`, which decoder layers have no buffer, which mixers do not copy their gate, whether norms are paired.

    Graphs call the operators by name, so the C++ library's code is not part of it. Whether there is a library is: it
    decides which of vLLM's classes are replaced.
    """
    library = "python" if extension.cpp_library() is None else "cpp"
    launch = "pdl" if settings.pdl_enabled() else "plain"
    native = sorted(installed.given_back | set(installed.failures))
    parts = [serving_ops.__version__, source_hash(), settings.choice(), library, launch, *native]
    parts += qk_norm_rope_layer.layers_on + mixer_output.layers_on + mixer_gate.mixers_on + norm_pairs.on
    return "-".join(parts)


def install() -> None:
    """Make `compile_key` a factor of vLLM's compile-cache keys, and our variables ones that it copies."""
    from vllm import envs

    if not hasattr(envs, "compile_factors"):
        raise RuntimeError("this vLLM does not hash vllm.envs.environment_variables into its compile-cache keys")
    for variable in settings.VARIABLES:
        key = compile_key if variable.name == VARIABLE else _no_factor
        installed.put(envs.environment_variables, variable.name, key)


def _no_factor() -> None:
    """Give the same factor for every value: `compile_key` holds those that change compiled code."""
