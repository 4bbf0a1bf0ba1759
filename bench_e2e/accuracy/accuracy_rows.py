"""Every combination that was asked for: vLLM with its own norms and with ours, beside the same reference."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving_ops.bench_e2e.accuracy.figures import Figures, figures, ratio
from serving_ops.bench_e2e.accuracy.fp32_reference import reference_logits, tokens_of
from serving_ops.bench_e2e.comparison import OURS
from serving_ops.bench_e2e.plugin_log import is_active, startup_line
from serving_ops.bench_e2e.process import ChildFailed, Children, wait_a_little
from serving_ops.bench_e2e.server import VARIANTS, engine_environment

WORKER = [sys.executable, "-m", "serving_ops.bench_e2e.accuracy.engine_logits"]
SPARE_TOKENS = 64


@dataclass(frozen=True)
class Served:
    """What the engine is given. checkpoint: a folder; more: arguments for vLLM."""

    quantization: str | None
    eager: bool
    checkpoint: Path
    more: dict[str, Any]

    @property
    def label(self) -> str:
        return f"{self.quantization or 'bf16'}, {'eager' if self.eager else 'compiled'}"


def measure(
    model: Path, text: str, served: Iterable[Served], device: str, work: Path, say: Callable[[str], None]
) -> dict[str, Any]:
    """The figures of each. model: the bf16 checkpoint, computed in fp32 for the reference. Raises ChildFailed."""
    import torch

    tokens = tokens_of(model, text)
    say(f"the reference: {len(tokens)} tokens in fp32")
    reference, following = reference_logits(model, tokens), torch.tensor(tokens[1:])
    rows = []
    for one in served:
        found = {}
        for variant in VARIANTS:
            say(f"{one.label}, {variant}")
            logits, line = _engine_logits(one, variant, tokens, device, work)
            found[variant] = figures(logits, reference, following)
        rows.append(_row(one, found, line))
    exact = figures(reference, reference, following).perplexity
    return {"tokens": len(tokens), "reference_perplexity": round(exact, 4), "rows": rows}


def _row(served: Served, found: dict[str, Figures], line: str) -> dict[str, Any]:
    native, ours = (found[variant] for variant in VARIANTS)
    return {
        "quantization": served.quantization,
        "mode": "eager" if served.eager else "compiled",
        "perplexity": {variant: round(one.perplexity, 4) for variant, one in found.items()},
        "divergence": {variant: float(f"{one.divergence:.4g}") for variant, one in found.items()},
        "same_top": {variant: round(one.same_top, 4) for variant, one in found.items()},
        "startup": line,
        "active": is_active(line),
        "divergence_ratio": [round(bound, 3) for bound in ratio(ours, native)],
    }


def _engine_logits(served: Served, variant: str, tokens: list[int], device: str, work: Path) -> tuple[Any, str]:
    """The logits, and what serving_ops said at start-up."""
    import torch

    room = len(tokens) + SPARE_TOKENS
    arguments = {
        "model": str(served.checkpoint),
        "enforce_eager": served.eager,
        "max_model_len": room,
        "max_num_batched_tokens": room,  # the text in one step
        "enable_prefix_caching": False,
        **({"gpu_memory_utilization": 0.3} if device == "cuda" else {}),
        **served.more,
    }
    job, out, log = (work / f"{variant}.{ending}" for ending in ("json", "pt", "log"))
    job.write_text(json.dumps({"engine_arguments": arguments, "tokens": tokens, "out": str(out)}))
    environment = engine_environment(variant, device, work, offline=True)
    with Children() as children:
        child = children.start([*WORKER, str(job)], environment, log, cwd=work)
        while child.ended() is None:
            wait_a_little()
        if child.ended() != 0:
            raise ChildFailed(f"vLLM ended with status {child.ended()} ({served.label}, {variant})", child)
        line = startup_line(child.lines())
        if line is None and variant == OURS:
            raise ChildFailed(f"serving_ops said nothing at start-up ({served.label})", child)
    logits = torch.load(out)
    out.unlink()
    return logits, line or ""
