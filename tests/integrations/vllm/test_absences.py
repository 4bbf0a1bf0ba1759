"""A vLLM that lacks, or has changed, what the plugin needs: one line, no traceback, and strict mode's reason."""

from __future__ import annotations

import builtins
import logging
import re
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("vllm")

import hidden
import vllm
from in_process import DEVICE, HEAD, HIDDEN, no_operator_may_run, rows

from serving_ops import extension, settings
from serving_ops.integrations.vllm import features, installed, ir_providers, priority, register, startup

pytestmark = pytest.mark.skipif(
    DEVICE.type == "cpu" and extension.cpp_library() is None, reason="the C++ library was not built"
)


@pytest.fixture(autouse=True)
def _unregistered(registered: None) -> Iterator[None]:
    """This process as it was before any test registered the plugin."""
    installed.undo()
    yield
    installed.undo()


def _nothing_is_installed() -> bool:
    from vllm import envs, ir
    from vllm.model_executor.custom_op import op_registry_oot
    from vllm.v1.worker.worker_base import WorkerBase

    ours = [name for name in op_registry_oot if op_registry_oot[name].__name__.startswith("ServingOps")]
    providers = [op for op in priority.OPS if ir_providers.OURS & getattr(ir.ops, op).impls.keys()]
    hooked = WorkerBase.__init__.__code__.co_name == "init_and_watch"
    known = {variable.name for variable in settings.VARIABLES} & envs.environment_variables.keys()
    return not (ours or providers or hooked or known)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the plugin logs, of warnings and above, as it is formatted: tracebacks included."""
    lines: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: lines.append(logging.Formatter().format(record))  # type: ignore[method-assign]
    logger = logging.getLogger("vllm.serving_ops")
    monkeypatch.setattr(logger, "handlers", [*logger.handlers, handler])
    return lines


def _no_worker_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm.v1.worker.worker_base", None)


def _no_worker_class(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.v1.worker import worker_base

    monkeypatch.delattr(worker_base, "WorkerBase")


def _workers_load_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.v1.worker.worker_base import WorkerBase

    monkeypatch.delattr(WorkerBase, "load_model")


def _plugin_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "install_all", lambda strict: {}["a key"])


Plant = Callable[[pytest.MonkeyPatch], None]

OFF = {
    _no_worker_module: "worker_base",
    _no_worker_class: "cannot import name 'WorkerBase'",
    _workers_load_otherwise: "WorkerBase has no load_model",
    _plugin_broken: "a key",
}
"""What is planted, and what the line says of it."""


@pytest.mark.parametrize("plant", OFF)
def test_without_a_place_for_the_report_nothing_is_installed_and_one_line_says_why(
    monkeypatch: pytest.MonkeyPatch, said: list[str], plant: Plant
) -> None:
    with monkeypatch.context() as planted:
        plant(planted)
        register()
    assert _nothing_is_installed()
    assert len(said) == 1
    assert said[0].startswith("serving_ops is off: ")
    assert OFF[plant] in said[0]
    assert said[0].endswith(f"(vLLM {vllm.__version__})")
    assert "\n" not in said[0]


@pytest.mark.parametrize("plant", OFF)
def test_strict_mode_raises_with_that_reason(monkeypatch: pytest.MonkeyPatch, said: list[str], plant: Plant) -> None:
    monkeypatch.setenv("SERVING_OPS", "strict")
    with monkeypatch.context() as planted:
        plant(planted)
        with pytest.raises(RuntimeError, match=f"SERVING_OPS=strict: .*{OFF[plant]}"):
            register()
    assert said == []
    assert _nothing_is_installed()


class AnotherPlugins:
    """What another plugin puts behind a class of vLLM's after us."""


def test_another_plugin_can_register_a_class_only_where_its_ops_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.model_executor.custom_op import CustomOp, op_registry_oot

    register()
    with pytest.raises(AssertionError, match="Duplicate op name: RMSNormGated"):
        CustomOp.register_oot(name="RMSNormGated")(AnotherPlugins)
    monkeypatch.delitem(op_registry_oot, "RMSNormGated")
    monkeypatch.setenv("SERVING_OPS", "rms_norm,fused_add_rms_norm")
    register()
    CustomOp.register_oot(name="RMSNormGated")(AnotherPlugins)
    assert op_registry_oot["RMSNormGated"] is AnotherPlugins


def _keys_made_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm import envs

    monkeypatch.delattr(envs, "compile_factors")


def _priority_asked_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.platforms import current_platform

    changed = classmethod(lambda cls, vllm_config, phase: None)
    monkeypatch.setattr(type(current_platform), priority._METHOD, changed)


def _ir_called_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm import ir

    monkeypatch.delattr(type(ir.ops.rms_norm), "register_impl")


def _no_ir(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builtins, "__import__", hidden._without("vllm.ir"))


def _gate_called_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.model_executor.layers.layernorm import RMSNormGated

    monkeypatch.setattr(RMSNormGated, "forward_native", lambda self, x, gate, scale: x)


def _platforms_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm.platforms", None)


PARTLY = {
    _keys_made_otherwise: (features.COMPILE_CACHE, "does not hash"),
    _priority_asked_otherwise: (features.PRIORITY, "get_default_ir_op_priority takes other arguments"),
    _no_ir: (features.IR_PROVIDERS, "No module named 'vllm.ir'"),
    _ir_called_otherwise: (features.IR_PROVIDERS, "register_impl"),
    _gate_called_otherwise: (
        "RMSNormGated",
        r"RMSNormGated.forward_native takes \(self, x, gate, scale\), not \(self, x, z\)",
    ),
    _platforms_moved: ("RMSNormGated", "vllm.platforms"),
}
"""What is planted, the feature that it keeps out, and its reason, which the start-up line gives for each layer."""


@pytest.mark.parametrize("plant", PARTLY)
def test_what_else_is_missing_keeps_a_part_out_without_a_word_before_the_start_up_line(
    monkeypatch: pytest.MonkeyPatch, said: list[str], plant: Plant
) -> None:
    feature, reason = PARTLY[plant]
    with monkeypatch.context() as planted:
        plant(planted)
        register()
    assert said == []
    assert re.search(reason, installed.failures[feature])
    assert features.STARTUP not in installed.failures


@pytest.mark.parametrize("plant", PARTLY)
def test_strict_mode_raises_for_a_part_too(monkeypatch: pytest.MonkeyPatch, plant: Plant) -> None:
    monkeypatch.setenv("SERVING_OPS", "strict")
    with monkeypatch.context() as planted:
        plant(planted)
        with pytest.raises(RuntimeError, match=f"SERVING_OPS=strict: .*{PARTLY[plant][1]}"):
            register()


def _built(in_vllm: Any) -> tuple[Any, Any]:
    from vllm.model_executor.layers.layernorm import GemmaRMSNorm

    layer = GemmaRMSNorm(HIDDEN).to(DEVICE, torch.bfloat16).requires_grad_(False)
    configuration = SimpleNamespace(dtype=torch.bfloat16, get_hidden_size=lambda: HIDDEN, get_head_size=lambda: HEAD)
    worker = SimpleNamespace(
        get_model=lambda: layer,
        model_runner=SimpleNamespace(),
        device=DEVICE,
        vllm_config=SimpleNamespace(model_config=configuration, quant_config=None),
    )
    return layer, worker


def _layers_hold_other_attributes(layer: Any, worker: Any) -> str:
    del layer.variance_epsilon
    return "variance_epsilon"


def _models_have_other_sizes(layer: Any, worker: Any) -> str:
    del worker.vllm_config.model_config.get_head_size
    return "get_head_size"


def _workers_hold_no_device(layer: Any, worker: Any) -> str:
    del worker.device
    return "device"


@pytest.mark.parametrize("remove", [_layers_hold_other_attributes, _models_have_other_sizes, _workers_hold_no_device])
def test_a_model_that_cannot_be_looked_at_stays_vllms_and_one_line_says_why(
    monkeypatch: pytest.MonkeyPatch, in_vllm: Any, said: list[str], remove: Callable[[Any, Any], str]
) -> None:
    from vllm import ir

    register()
    layer, worker = _built(in_vllm)
    missing = remove(layer, worker)
    assert startup._then_report(worker, lambda: "loaded")() == "loaded"
    assert len(said) == 1
    assert "serving_ops could not look at the model, whose norms stay vLLM's own" in said[0]
    assert missing in said[0]
    assert "\n" not in said[0]
    no_operator_may_run(monkeypatch)
    layer.variance_epsilon = 1e-6
    layer(rows(4, HIDDEN))
    assert all(ir_providers.OURS.isdisjoint(getattr(ir.ops, op).get_priority()) for op in priority.OPS)


def test_in_strict_mode_a_model_that_cannot_be_looked_at_stops_the_engine(
    monkeypatch: pytest.MonkeyPatch, in_vllm: Any
) -> None:
    register()
    layer, worker = _built(in_vllm)
    missing = _models_have_other_sizes(layer, worker)
    monkeypatch.setenv("SERVING_OPS", "strict")
    with pytest.raises(RuntimeError, match=f"SERVING_OPS=strict: .*{missing}"):
        startup._then_report(worker, lambda: "loaded")()


def test_a_configuration_that_holds_no_priority_gets_its_defaults(
    monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    from vllm.config import VllmConfig

    asked: list[Any] = []
    monkeypatch.setattr(VllmConfig, priority._DEFAULTS_METHOD, lambda self: asked.append(self))
    register()
    passes = SimpleNamespace(fuse_norm_quant=None)
    config = SimpleNamespace(compilation_config=SimpleNamespace(pass_config=passes), kernel_config=SimpleNamespace())
    getattr(VllmConfig, priority._DEFAULTS_METHOD)(config)
    assert asked == [config]
    assert len(said) == 1
    assert "could not read its IR priority" in said[0]


def test_a_configuration_that_vllm_changed_leaves_its_priority_as_it_is(said: list[str]) -> None:
    from vllm.platforms import current_platform

    register()
    compilation = SimpleNamespace(backend="eager", mode=0)
    defaults = current_platform.get_default_ir_op_priority(SimpleNamespace(compilation_config=compilation))
    assert ir_providers.OURS.isdisjoint(defaults.rms_norm)
    assert len(said) == 1
    assert "could not add to vLLM's IR priority" in said[0]
