"""What the arguments of a server say of the code around our operators."""

from __future__ import annotations

from typing import Any

TRACED = "torch.compile traces the model"


def resolved(runner: Any) -> Any:
    """Return the arguments as the server runs with them. Since 0.5.23 a runner has them as the user gave them."""
    try:
        from sglang.srt.arg_groups.overrides import resolved_view
    except ImportError:  # SGLang before 0.5.17
        return runner.server_args
    return resolved_view(runner.server_args)


def why_traced(args: Any) -> str | None:
    """Return that SGLang compiles the model's code, if it does: then its methods and their results stay its own."""
    graphs = getattr(args, "cuda_graph_config", None)
    if graphs is None:  # SGLang 0.5.11, whose prompts run in pieces of graphs by default
        pieces = not getattr(args, "disable_piecewise_cuda_graph", True)
        pieces = pieces and not getattr(args, "enable_breakable_cuda_graph", False)
    else:
        pieces = graphs.prefill.backend == "tc_piecewise"
    return TRACED if pieces or getattr(args, "enable_torch_compile", False) else None
