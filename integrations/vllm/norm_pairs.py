"""Two norms in one graph of a compiled CUDA model, with the sum between them in fp32.

vLLM compiles what lies between two attentions as one graph. Two norms lie in it, and Inductor's own code never rounds
the residual from the first to the second. `fused_add_rms_norm` would write it in half precision. So the first norm of a
pair writes no sum, and the second one adds what the first one added: as many bytes as before, and one rounding less
(docs/accuracy.md).

The pairs are found before vLLM lowers its IR ops. The graph is functional there: no value is overwritten. What replaces
a pair has vLLM's own form of an operator in place: copies that vLLM leaves out where nothing reads the value later. A
pair stays as it is where something else reads what the first norm adds, because vLLM may then lower that to a call that
overwrites it before the second norm.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import operator
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch._inductor.custom_graph_pass import get_hash_for_files
from torch.fx import Graph, Node

from serving_ops import NormSpec, extension
from serving_ops.integrations.common import guard
from serving_ops.integrations.common.norm_classes import WEIGHT_IN_FP32
from serving_ops.integrations.common.norm_layers import NormLayer, prewarm
from serving_ops.integrations.vllm import features, installed
from serving_ops.integrations.vllm.compilation import is_in_pieces
from serving_ops.integrations.vllm.ir_providers import PROVIDER

_logger = logging.getLogger("vllm.serving_ops")

PAIRED = "fused_add_rms_norm"
"""The name of vLLM's IR op, and of our operator that it becomes."""

PAIR = ("rms_norm_of_sum", "fused_add_two_rms_norm")
"""The operators that replace two of these in a row."""

HALF = (torch.bfloat16, torch.float16)

on: list[str] = []
"""What graphs call where pairs are replaced: compiled graphs depend on it."""


def take(found: Iterable[NormLayer], vllm_config: Any) -> str | None:
    """Prewarm what pairs of a loaded model's norms become, and have vLLM pair them; returns a phrase for the start-up
    line, or None.

    vLLM compiles later. Raises RuntimeError where the prewarm fails, and as `install`.
    """
    pairs = specs(found)
    if not pairs or not can_run(vllm_config):
        return None
    failed = prewarm(pairs, _logger)
    if failed:
        raise RuntimeError(next(iter(failed.values())))
    install()
    return "where two plain norms follow each other, they add in fp32"


def specs(found: Iterable[NormLayer]) -> list[NormSpec]:
    """Return what pairs of the norms that are on may call."""
    norms = [spec for layer in found if layer.native_because is None for spec in layer.specs]
    paired = [
        spec for spec in norms if (spec.op, spec.weight_offset) == (PAIRED, WEIGHT_IN_FP32) and spec.dtype in HALF
    ]
    return list(dict.fromkeys(dataclasses.replace(spec, op=op) for spec in paired for op in PAIR))


def can_run(vllm_config: Any) -> bool:
    """Return whether vLLM compiles graphs for CUDA, and keeps them under a key that has our part.

    Without the C++ library prompts beyond the captured sizes would wait for launches from Python.
    """
    from vllm.platforms import current_platform

    compilation = vllm_config.compilation_config
    return bool(
        current_platform.is_cuda()
        and extension.cpp_library() is not None
        and features.COMPILE_CACHE not in installed.failures
        and is_in_pieces(compilation)
    )


def install() -> None:
    """Have vLLM pair norms before it lowers them.

    Raises ImportError or AttributeError where this vLLM lowers them in another way.
    """
    from vllm.compilation.passes.ir.lowering_pass import VllmIRLoweringPass

    installed.wrap(VllmIRLoweringPass, "uuid", _with_our_hash)
    installed.wrap(VllmIRLoweringPass, "__call__", _pairing)
    on[:] = PAIR
    installed.on_undo(on.clear)


def _with_our_hash(original: Any) -> Any:
    """Of the pass, for the key of Inductor's cache."""

    @functools.wraps(original)
    def uuid(self: Any) -> str:
        return f"{original(self)}|{get_hash_for_files((__file__,)).hex()}"

    return uuid


def _pairing(original: Any) -> Any:
    @functools.wraps(original)
    def pair_and_lower(self: Any, graph: Graph) -> None:
        with guard.unless_strict("vLLM", "pair its norms"):
            pair_up(graph)
        original(self, graph)

    return pair_and_lower


def pair_up(graph: Graph) -> int:
    """Replace pairs of vLLM's IR op in a functional graph; returns how many."""
    found = list(_pairs(graph))
    for first, second in found:
        _replace(first, second)
    return len(found)


def _pairs(graph: Graph) -> Iterator[tuple[Node, Node]]:
    """Norms of which the second adds to the first one's sum. Each norm is in one pair at most."""
    from vllm import ir

    ir_op = getattr(ir.ops, PAIRED)
    taken: set[Node] = set()
    for first in graph.find_nodes(op="call_function", target=ir_op.torch_op):
        second = _next(first)
        if second is None or not taken.isdisjoint((first, second)):
            continue
        if not all(_is_ours(ir_op, norm) for norm in (first, second)):
            continue
        x, residual, *_ = _arguments(first)
        if all(_is_dense(value) and _is_read_by(first, value) for value in (x, residual)):
            taken |= {first, second}
            yield first, second


def _next(first: Node) -> Node | None:
    """The norm that alone reads the sum of this one, as its residual; None where there is no such norm."""
    if any(user.target is not operator.getitem for user in first.users):
        return None
    sums = [user for user in first.users if _arguments(user)[1] == 1]
    readers = {reader for total in sums for reader in total.users}
    if len(readers) != 1:
        return None
    (reader,) = readers
    if reader.target is not first.target:
        return None
    x, residual, *_ = _arguments(reader)
    return reader if residual in sums and x not in sums else None


def _arguments(node: Node) -> Any:
    """Of an operator's call; none is given by name."""
    return node.args


def _is_ours(ir_op: Any, norm: Node) -> bool:
    """Whether vLLM would give the call to our provider, and the sum between two such calls would be rounded."""
    arguments: Any = torch.fx.map_arg(norm.args, lambda node: node.meta["val"])
    return bool(arguments[0].dtype in HALF and ir_op.dispatch(*arguments).provider == PROVIDER)


def _is_dense(value: Any) -> bool:
    """Whether rows lie side by side, as a copy's do; no where that is not known before the call."""
    tensor, expected = value.meta["val"], 1
    for size, stride in zip(reversed(tensor.shape), reversed(tensor.stride()), strict=True):
        if not isinstance(stride, int) or stride != expected:
            return False
        expected = stride * size
    return True


def _is_read_by(norm: Node, value: Any) -> bool:
    """Whether nothing but this norm, and views that it reads, sees the memory of a value."""
    holders = {node for node in norm.graph.nodes if _memory(node) == _memory(value)}
    users = {user for holder in holders for user in holder.users}
    return users - holders == {norm} and not any(_writes(user) for user in users & holders)


def _memory(node: Node) -> Any:
    value = node.meta.get("val")
    return value.untyped_storage()._cdata if isinstance(value, torch.Tensor) else node


def _writes(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is None or schema.is_mutable


def _replace(first: Node, second: Node) -> None:
    graph, ops = first.graph, [getattr(torch.ops.serving_ops, op).default for op in PAIR]
    x, residual, *of_first = _arguments(first)[:4]
    x_of_second, _, *of_second = _arguments(second)[:4]
    with graph.inserting_before(first):
        normed = graph.call_function(ops[0], (x, residual, *of_first, WEIGHT_IN_FP32))
        normed.meta["val"] = torch.empty_like(x.meta["val"], memory_format=torch.contiguous_format)
    with graph.inserting_before(second):
        # The sum takes the place of x, which is seldom another graph's: vLLM 0.33 copies what would return an argument.
        written = [_clone(node) for node in (x_of_second, x)]
        graph.call_function(ops[1], (*written, residual, *of_second, WEIGHT_IN_FP32))
    _put_in_place_of(second, written)
    _put_in_place_of(first, [normed, None])


def _clone(value: Any) -> Node:
    clone: Node = value.graph.call_function(torch.ops.aten.clone.default, (value,))
    clone.meta["val"] = value.meta["val"].clone()
    return clone


def _put_in_place_of(norm: Node, results: list[Any]) -> None:
    for item in list(norm.users):
        item.replace_all_uses_with(results[_arguments(item)[1]])
        norm.graph.erase_node(item)
    norm.graph.erase_node(norm)
