"""Stands in for `sgl_kernel`, of which no CPU build is published: its names can be imported, and none of them works.

SGLang asks PyTorch for `sgl_kernel::convert_weight_packed` to learn whether there are AMX kernels: there are none.
"""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)

    def absent(*args: Any, **kwargs: Any) -> None:
        raise NotImplementedError(f"sgl_kernel.{name}: this is a stand-in")

    return absent
