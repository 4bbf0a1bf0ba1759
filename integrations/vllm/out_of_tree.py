"""Putting a subclass of ours behind one of vLLM's layer classes: vLLM then builds ours by the old name."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator

from serving_ops.integrations.vllm import installed
from vllm.model_executor.custom_op import CustomOp, op_registry_oot


class OnServingOps:
    """Mixed into each of our classes: `forward_native` and `forward_cuda` call our operators unless told otherwise."""

    ops: tuple[str, ...]
    """The operators that the class calls."""

    stay_native = False
    """Set on a class where prewarm failed, on a layer where no kernel takes its size: vLLM's own code runs."""


def classes_calling(op: str) -> Iterator[type[OnServingOps]]:
    """Our classes that call an operator."""
    return (ours for ours in OnServingOps.__subclasses__() if op in ours.ops)


def _why_not_called_as_ours(in_tree: type[CustomOp], ours: type[CustomOp]) -> str | None:
    for method in sorted({"forward_native", "forward_cuda"} & vars(ours).keys()):
        theirs, mine = (list(inspect.signature(getattr(cls, method)).parameters) for cls in (in_tree, ours))
        if theirs != mine:
            return f"{in_tree.__name__}.{method} takes ({', '.join(theirs)}), not ({', '.join(mine)})"
    return None


def replace(in_tree: type[CustomOp], ours: type[CustomOp]) -> None:
    """Have vLLM build `ours` for `in_tree`, once a process.

    Raises RuntimeError where another plugin replaced it, or vLLM calls it with other arguments than ours takes.
    """
    name, flag = in_tree.__name__, in_tree.name
    present = op_registry_oot.get(name)
    if present is ours:
        return
    if present is not None:
        raise RuntimeError(f"{present.__module__}.{present.__name__} already replaces {name}")
    reason = _why_not_called_as_ours(in_tree, ours)
    if reason is not None:
        raise RuntimeError(reason)
    CustomOp.register_oot(name=name)(ours)
    ours.name = flag  # register_oot overwrote it, and custom_ops flags go by it
    installed.on_undo(functools.partial(_take_out, name, ours))


def _take_out(name: str, ours: type[CustomOp]) -> None:
    _withdrawn.pop(name, None)
    if op_registry_oot.get(name) is ours:
        del op_registry_oot[name]


_withdrawn: dict[str, type[CustomOp]] = {}


def withdraw() -> None:
    """Have vLLM build its own classes where it would build ours, until `put_back`."""
    ours = {name: cls for name, cls in op_registry_oot.items() if issubclass(cls, OnServingOps)}
    _withdrawn.update(ours)
    for name in ours:
        del op_registry_oot[name]


def put_back() -> None:
    """Have vLLM build those of ours again that were withdrawn."""
    for name, ours in _withdrawn.items():
        op_registry_oot.setdefault(name, ours)
    _withdrawn.clear()
