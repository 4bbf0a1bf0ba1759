"""The residual of a compiled CPU model, kept in fp32 between its norms.

vLLM compiles a model on CPU as one graph, in which Inductor leaves out the roundings between its own norms: their
residual is never rounded. Our operators write it to memory. Rounded there at each norm, it gave SmolLM2 1.31 of the
mean KL divergence from fp32 that it has with Inductor's norms (docs/accuracy.md). So a pass over the graph copies the
residual to fp32 once, before the first norm that adds to it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files

from serving_ops.integrations.common import guard

KEY = "pre_grad_custom_pass"
"""Of Inductor's configuration: a pass over the graph that Dynamo made."""


class Fp32Residual(CustomGraphPass):
    """Copies residuals of half precision to fp32 where none but norms that add to them can see the difference."""

    def __call__(self, graph: torch.fx.Graph) -> None:
        with guard.unless_strict("vLLM", "keep a residual in fp32"):
            place = {node: number for number, node in enumerate(graph.nodes)}
            for residual, adding in _residuals(graph).items():
                later = [user for user in residual.users if place[user] > place[adding[0]] and user not in adding]
                if len(adding) > 1 and not later and _is_half(residual) and not _has_alias(residual, graph):
                    _copy(residual, adding)

    def uuid(self) -> str:
        """A text, since vLLM makes JSON of its configuration for a cache's key."""
        return get_hash_for_files((__file__,)).hex()


def install_for(vllm_config: Any) -> None:
    """Add the pass to a configuration, before vLLM builds the model. A pass that the user named there stays."""
    from vllm.platforms import current_platform

    options = getattr(getattr(vllm_config, "compilation_config", None), "inductor_compile_config", None)
    if current_platform.is_cpu() and options is not None:
        options.setdefault(KEY, Fp32Residual())


def _residuals(graph: torch.fx.Graph) -> dict[torch.fx.Node, list[torch.fx.Node]]:
    """The residuals of our norms, each with those that add to it, in order."""
    op = torch.ops.serving_ops.fused_add_rms_norm
    found: dict[torch.fx.Node, list[torch.fx.Node]] = {}
    for node in graph.nodes:
        if node.target in (op, op.default):
            found.setdefault(node.args[1], []).append(node)
    return found


def _is_half(residual: torch.fx.Node) -> bool:
    """A placeholder stays: it is another graph's result."""
    return residual.op != "placeholder" and _value(residual).dtype in (torch.bfloat16, torch.float16)


def _has_alias(residual: torch.fx.Node, graph: torch.fx.Graph) -> bool:
    """Whether another node has its memory, and would no longer see what is added."""
    memory = _value(residual).untyped_storage()._cdata
    values = (_value(node) for node in graph.nodes if node is not residual)
    return any(isinstance(value, torch.Tensor) and value.untyped_storage()._cdata == memory for value in values)


def _value(node: torch.fx.Node) -> Any:
    return node.meta.get("example_value")


def _copy(residual: torch.fx.Node, adding: list[torch.fx.Node]) -> None:
    with residual.graph.inserting_before(adding[0]):
        copy = residual.graph.call_method("to", (residual, torch.float32))
    copy.meta["example_value"] = _value(residual).to(torch.float32)
    for norm in adding:
        norm.replace_input_with(residual, copy)
