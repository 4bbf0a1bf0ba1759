"""Engines that serve the small models of models.py, each in fresh processes; one run is shared by all tests."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import answers
import other_versions
import pytest
import torch
from in_process import FUSED, OURS_FIRST
from once import once

from serving_ops.integrations.vllm import installed, priority, register, startup

HERE = Path(__file__).parent
ENGINE_SECONDS = 300

ENGINE_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "PYTHONSAFEPATH": "1",
    "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",  # serve_tokens.py sends a function to the worker
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
}

IN_SEPARATE_PROCESSES = {("dense", "eager", "auto", "installed"), ("hybrid", "compiled", "auto", "installed")}
"""Runs with server, engine core and worker apart, as in production; in the others one process is all three, which
starts 25 s sooner on 2 cores."""

INSTALLED = "installed"
HIDDEN = {"without workers": "vllm.v1.worker.worker_base"}
BATCH_INVARIANT = "batch-invariant"
"""Which vLLM serves: the one beside this package, that one with a module hidden from ours or with its batch-invariant
kernels, or one of other_versions.py, by its version."""


class Served(answers.Served):
    """Of one engine in one process."""

    def device(self) -> str:
        return "cuda" if "device_config=cuda" in self.output else "cpu"

    def calls(self) -> dict[str, dict[str, Any]]:
        """Calls while serving, without those of start-up."""
        before, after = (self.result[moment][0]["calls"] for moment in ("before", "after"))
        return {op: {path: _less(after[op][path], before[op][path]) for path in after[op]} for op in after}


def _less(after: Any, before: Any) -> Any:
    if isinstance(after, dict):
        return {reason: n - before.get(reason, 0) for reason, n in after.items() if n != before.get(reason, 0)}
    return after - before


def _run(arguments: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=ENGINE_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    return done.stdout


def _lacks_experts() -> bool:
    """Whether this is a CUDA machine whose vLLM came without the library of its mixture-of-experts layers."""
    if not torch.cuda.is_available():
        return False
    return not any(importlib.util.find_spec(f"vllm.{name}") for name in ("_moe_C", "_moe_C_stable_libtorch"))


@pytest.fixture(autouse=True, scope="session")
def operators() -> None:
    """What start-up defines before it looks at a model."""
    startup.define_operators()


@pytest.fixture(autouse=True)
def same_environment() -> Iterator[None]:
    """After each test it is as before: where vLLM resolves a configuration, it sets variables that engines inherit."""
    with mock.patch.dict(os.environ):
        yield


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str, str, str], Served]:
    """served(model, mode, switch, vllm): "dense" or "hybrid", "eager" or "compiled", SERVING_OPS or FUSED."""
    pytest.importorskip("vllm")
    scratch = tmp_path_factory.mktemp("engines")

    @once
    def model(name: str) -> Path:
        name = "hybrid_without_experts" if name == "hybrid" and _lacks_experts() else name
        target = scratch / name
        _run([str(HERE / "models.py"), name, str(target)], dict(os.environ))
        return target

    @once
    def serve(name: str, mode: str, switch: str, vllm: str) -> Served:
        if switch == "off" and vllm in HIDDEN:  # nothing of ours asks for the module
            return serve(name, mode, switch, INSTALLED)
        run = scratch / f"{name}-{mode}-{switch}-{vllm}"
        run.mkdir()
        # One set of caches for both variants: an artifact of one must never serve the other.
        caches = {
            "VLLM_CACHE_ROOT": str(scratch / "vllm-cache"),
            "TORCHINDUCTOR_CACHE_DIR": str(scratch / "inductor-cache"),
        }
        environment = {**os.environ, **ENGINE_ENVIRONMENT, **caches, "SERVING_OPS": switch}
        if switch == FUSED:
            environment |= {"SERVING_OPS": "auto", "FUSE_Q_AND_K": "1"}
        if vllm in other_versions.VERSIONS:
            environment |= other_versions.environment(vllm)
        if vllm == BATCH_INVARIANT:
            environment["VLLM_BATCH_INVARIANT"] = "1"
        if (name, mode, switch, vllm) not in IN_SEPARATE_PROCESSES:
            environment["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        arguments = [str(HERE / "serve_tokens.py"), str(model(name)), str(run / "result.json"), mode]
        output = _run([*arguments, *([HIDDEN[vllm]] if vllm in HIDDEN else [])], environment)
        return Served(json.loads((run / "result.json").read_text()), output)

    return serve


@pytest.fixture
def registered() -> Iterator[None]:
    """The plugin is on and every feature in place; afterwards vLLM is as it was."""
    from vllm import ir

    with pytest.MonkeyPatch.context() as environment:  # a test's own is undone before what the plugin did
        environment.setenv("SERVING_OPS", "auto")
        register()
        assert installed.failures == {}
        for op in priority.OPS:
            getattr(ir.ops, op).set_default(OURS_FIRST)
        yield
        installed.undo()


@pytest.fixture
def in_vllm() -> Iterator[Any]:
    """A vLLM configuration, as layers need it to be built; every custom op on, as in eager mode."""
    from vllm.config import CompilationConfig, VllmConfig, set_current_vllm_config

    config = VllmConfig(compilation_config=CompilationConfig(custom_ops=["all"]))
    with set_current_vllm_config(config):
        yield config
