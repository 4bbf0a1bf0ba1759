"""Normalization ops for serving: plain, gated and quantized RMSNorm, and `qk_norm_rope` for attention layers.

They run in Triton on CUDA, in C++ on CPU, and in plain PyTorch (`serving_ops.reference`) elsewhere. Importing this
package imports neither Triton nor an engine, and does not initialise CUDA.
"""

from __future__ import annotations

import typing as _typing
from pathlib import Path as _Path

# `kernels`, `integrations` and `bench_e2e` install inside this package; in a checkout they lie beside it.
_beside = _Path(__file__).resolve().parent.parent
if (_beside / "pyproject.toml").is_file() and str(_beside) not in __path__:
    __path__.append(str(_beside))

from serving_ops import counters, extension, reference, settings  # noqa: E402
from serving_ops.explain import Explanation, explain  # noqa: E402
from serving_ops.extension import cpp_library  # noqa: E402
from serving_ops.norm_spec import NormSpec, RopeSpec  # noqa: E402
from serving_ops.ops.add_rms_norm import add_rms_norm  # noqa: E402
from serving_ops.ops.fused_add_rms_norm import fused_add_rms_norm  # noqa: E402
from serving_ops.ops.fused_add_rms_norm_quant import fused_add_rms_norm_quant  # noqa: E402
from serving_ops.ops.fused_add_two_rms_norm import fused_add_two_rms_norm  # noqa: E402
from serving_ops.ops.qk_norm_rope import qk_norm_rope  # noqa: E402
from serving_ops.ops.rms_norm import rms_norm  # noqa: E402
from serving_ops.ops.rms_norm_gated import rms_norm_gated  # noqa: E402
from serving_ops.ops.rms_norm_gated_quant import rms_norm_gated_quant  # noqa: E402
from serving_ops.ops.rms_norm_of_sum import rms_norm_of_sum  # noqa: E402
from serving_ops.ops.rms_norm_quant import rms_norm_quant  # noqa: E402
from serving_ops.prewarm import PrewarmReport, prewarm  # noqa: E402
from serving_ops.quant_format import QuantFormat  # noqa: E402
from serving_ops.training import backward_ops as _backward_ops  # noqa: E402, F401 (registers)
from serving_ops.version import __version__  # noqa: E402

extension.warn_without_library()

if _typing.TYPE_CHECKING:
    from serving_ops import nn as nn
else:

    def __getattr__(name: str) -> object:
        """`serving_ops.nn`, imported when it is first named: serving needs no modules."""
        if name != "nn":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import serving_ops.nn

        return serving_ops.nn


__all__ = [
    "Explanation",
    "NormSpec",
    "PrewarmReport",
    "QuantFormat",
    "RopeSpec",
    "__version__",
    "add_rms_norm",
    "counters",
    "cpp_library",
    "explain",
    "fused_add_rms_norm",
    "fused_add_rms_norm_quant",
    "fused_add_two_rms_norm",
    "prewarm",
    "qk_norm_rope",
    "reference",
    "rms_norm",
    "rms_norm_gated",
    "rms_norm_gated_quant",
    "rms_norm_of_sum",
    "rms_norm_quant",
    "settings",
]
