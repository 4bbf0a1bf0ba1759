"""Replace one of vLLM's layer classes by our subclass of it: vLLM then builds ours under the old name."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Set
from typing import Any

from serving_ops.integrations.vllm import installed
from serving_ops.integrations.vllm.adapters import Adapter
from vllm.model_executor.custom_op import op_registry_oot

_ours: dict[str, Any] = {}
"""The name of vLLM's class -> our subclass."""


def replace(adapter: Adapter) -> None:
    """Have vLLM build our subclass in place of its class. A second call does nothing.

    Raises RuntimeError if another plugin replaced the class, or vLLM's arguments are not those that the adapter takes.
    """
    name = adapter.name
    present, ours = op_registry_oot.get(name), _ours.get(name)
    if present is not None and present is not ours:
        raise RuntimeError(f"{present.__module__}.{present.__name__} already replaces {name}")
    installed.put(_ours, name, ours or _class_of(adapter))
    installed.put(op_registry_oot, name, _ours[name])


def _class_of(adapter: Adapter) -> Any:
    """A subclass with the same parameters and attributes. vLLM's own method runs what the kernels do not take.

    `stay_native` is set on the class once its operators are given back, and on each layer that the kernels do not take.
    """
    vllms = adapter.vllms_class()
    ours = {method: _method(vllms, method, adapter.forward) for method in adapter.methods}
    more = {"__module__": __name__, "__doc__": _class_of.__doc__, "adapter": adapter, "stay_native": False}
    return type(f"ServingOps{adapter.name}", (vllms,), {**ours, **more})


def _method(vllms: Any, method: str, forward: Callable[..., Any]) -> Callable[..., Any]:
    own = getattr(vllms, method)
    wanted, taken = (list(inspect.signature(function).parameters)[1:] for function in (own, forward))
    if wanted != taken:
        takes = "takes ({}), not ({})".format(*(", ".join(["self", *names]) for names in (wanted, taken)))
        raise RuntimeError(f"{vllms.__name__}.{method} {takes}")

    @functools.wraps(own)
    def ours_or_vllms(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = None if self.stay_native else forward(self, *args, **kwargs)
        return getattr(vllms, method)(self, *args, **kwargs) if result is None else result

    return ours_or_vllms


def give_back(ops: Set[str]) -> None:
    """Run vLLM's own code in each of our classes that calls one of these operators."""
    for ours in _ours.values():
        if not ops.isdisjoint(ours.adapter.ops):
            installed.set(ours, "stay_native", True)


def build_ours(wanted: Callable[[Adapter], bool]) -> None:
    """Have vLLM build our class where that is wanted, and its own elsewhere."""
    for name, ours in _ours.items():
        if wanted(ours.adapter):
            op_registry_oot.setdefault(name, ours)
        elif op_registry_oot.get(name) is ours:
            del op_registry_oot[name]
