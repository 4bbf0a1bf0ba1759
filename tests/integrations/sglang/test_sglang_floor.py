"""Schedulers whose norms do nothing, on SGLang's own layers in a process of their own."""

from __future__ import annotations

import pytest
import sglang_versions
from sglang_versions import run

SCRIPT = """
import importlib
import torch
from serving_ops.bench_e2e.turns import floor
from serving_ops.integrations.sglang.layers import ADAPTERS

def classes(kind):
    adapter = next(adapter for adapter in ADAPTERS if adapter.kind == kind)
    for module in adapter.defined_in:
        try:
            yield getattr(importlib.import_module(module), adapter.name)
        except ModuleNotFoundError:
            pass

floor.remove_sglangs_norms()
x, other = torch.randn(2, 64), torch.randn(2, 64)
for kind in ("RMSNorm", "GemmaRMSNorm"):
    for norm in classes(kind):
        assert norm(64)(x) is x
        assert norm(64)(x, other) == norm(64)(x, other, None) == (x, other)  # as SGLang's communicator calls it
for kind in ("RMSNormGated", "FusedRMSNormGated"):
    built = [norm(64) for norm in classes(kind)]
    assert built and all(layer(x, other) is x for layer in built)
(mixer2,) = classes("Mixer2RMSNormGated")
assert mixer2.forward_native(None, x, other) is mixer2.forward_cuda(None, x, other) is x

launched = []
floor._launch_nothing = launched.append
floor.remove_sglangs_norms(floor.EMPTY_NORMS)
for kind in ("RMSNorm", "GemmaRMSNorm"):
    for norm in classes(kind):
        assert norm(64)(x, other) == (x, other)
        assert launched.pop() is x
for kind in ("RMSNormGated", "FusedRMSNormGated"):
    for norm in classes(kind):
        assert norm(64)(x, other) is x
        assert launched.pop() is x
assert mixer2.forward_cuda(None, x, other) is x
assert launched == [x]
"""


@pytest.mark.parametrize(
    "version", [pytest.param(version, marks=sglang_versions.needs(version)) for version in sglang_versions.VERSIONS]
)
def test_every_norm_that_the_plugin_adapts_returns_what_it_gets(version: str) -> None:
    done = run(["-c", SCRIPT], sglang_versions.environment(version))
    assert done.returncode == 0, done.stdout[-3000:]
