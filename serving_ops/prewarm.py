"""Compile, before the first request, what a model's norms will ask for."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch

from serving_ops import plan
from serving_ops.norm_spec import NormSpec
from serving_ops.ops import registry

logger = logging.getLogger("serving_ops")


@dataclass
class PrewarmReport:
    """What `prewarm` did: specs warmed, seconds it took, and for each spec that failed, why."""

    warmed: list[NormSpec] = field(default_factory=list)
    failed: dict[NormSpec, str] = field(default_factory=dict)
    seconds: float = 0.0


def prewarm(norms: Iterable[NormSpec]) -> PrewarmReport:
    """Compile or load every kernel that these norms can ask for, and run each once on tiny tensors.

    After it, no call that matches a spec compiles, whatever its number of rows. On CPU it runs each norm once, which
    loads and chooses the C++ kernels. A norm that fails is logged once and reported, and not raised.

    Raises TypeError where `norms` is no iterable, or holds something else than a `NormSpec`, and then runs none.
    """
    report = PrewarmReport()
    started = time.perf_counter()
    for spec in _specs(norms):
        try:
            _warm(spec)
            report.warmed.append(spec)
        except Exception as error:  # whatever Triton or the driver raises must not stop a server
            report.failed[spec] = f"{type(error).__name__}: {error}"
            logger.warning("prewarm of %s failed, it stays as it is: %s", spec, error)
    report.seconds = time.perf_counter() - started
    return report


def _specs(norms: Iterable[NormSpec]) -> list[NormSpec]:
    """Each once."""
    if not isinstance(norms, Iterable):
        raise TypeError(f"serving_ops: norms is {norms!r}: it must be an iterable of serving_ops.NormSpec")
    specs = [norms] if isinstance(norms, str) else list(norms)
    for spec in specs:
        if not isinstance(spec, NormSpec):
            raise TypeError(f"serving_ops: norms holds {spec!r}: it must hold values of serving_ops.NormSpec alone")
    return list(dict.fromkeys(specs))


def _warm(spec: NormSpec) -> None:
    """Call the op itself, so that exactly the plans, flags and layouts that serving asks for are compiled.

    One token alone collapses a strided view to plain rows, two do not, and more change the plan.
    """
    op, tokens = registry.find(spec.op), {1, 2}
    if spec.device.type == "cuda":
        tokens.update((op.tokens_to_prewarm or _tokens_of_rows)(spec))
    for num_tokens in sorted(tokens):
        op.function(**registry.sample(spec, num_tokens))
    if spec.device.type == "cuda":
        torch.cuda.synchronize(spec.device)


def _tokens_of_rows(spec: NormSpec) -> tuple[int, ...]:
    groups = spec.heads * (spec.size // spec.group_size if spec.group_size else 1)
    return tuple(-(-rows // groups) for rows in plan.rows_to_prewarm(spec.group_size or spec.size))
