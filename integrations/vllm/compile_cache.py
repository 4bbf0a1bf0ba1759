"""vLLM's compile-cache keys tell engines with serving_ops from those without, and its versions apart.

vLLM hashes its known environment variables into every compile-cache key, but neither plugins nor out-of-tree
classes. Registered under the name of our own switch, the variable also travels to Ray workers.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

import serving_ops
from serving_ops import settings
from serving_ops.integrations.vllm import features

VARIABLE = "SERVING_OPS"


def _source_files() -> list[Path]:
    package = Path(serving_ops.__file__).parent
    here = Path(__file__).parent
    folders = [package, here, here.with_name("common")]
    folders += [Path(root) / "kernels" / "triton" for root in serving_ops.__path__]
    return sorted({file for folder in folders for file in folder.rglob("*.py")}, key=lambda file: file.parts[-2:])


@cache
def source_hash() -> str:
    """A hash of the Python sources that compiled graphs depend on; the same on every rank of one version."""
    digest = hashlib.sha256()
    for file in _source_files():
        digest.update(file.name.encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def compile_key() -> str:
    """What vLLM hashes for `VARIABLE`: version, source hash, mode, ops, how RMSNorm is reached, what stays vLLM's."""
    reached = "ir" if features.has_ir() else "class"
    native = sorted(features.native_ops | set(features.failures))
    parts = [serving_ops.__version__, source_hash(), settings.choice(), reached, *native]
    return "-".join(parts)


def install() -> None:
    """Make `compile_key` a factor of vLLM's compile-cache keys."""
    from vllm import envs

    if not hasattr(envs, "compile_factors"):
        raise RuntimeError("this vLLM does not hash vllm.envs.environment_variables into its compile-cache keys")
    envs.environment_variables[VARIABLE] = compile_key
