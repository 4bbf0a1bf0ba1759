"""Other versions of Triton beside the installed one. Run by `make setup`, which fetches their wheels."""

from __future__ import annotations

import importlib.metadata

import fetched
import pytest

TORCH, OLDEST = "2.11", "3.6.0"
"""The oldest torch that pyproject.toml allows, and the Triton that its CUDA wheels require."""

VERSIONS = (OLDEST, "3.8.0")
"""Which kernels are compiled with, beside the installed one."""


def _is_installed(version: str) -> bool:
    try:
        return importlib.metadata.version("triton") == version
    except importlib.metadata.PackageNotFoundError:
        return False


def search_path(version: str) -> list[str]:
    """What comes first on PYTHONPATH of a process that imports that version."""
    return [] if _is_installed(version) else [str(fetched.folder("triton", version))]


def _is_there(version: str) -> bool:
    return _is_installed(version) or fetched.folder("triton", version).is_dir()


def needs(version: str) -> pytest.MarkDecorator:
    """Skips a test, with the reason, where that Triton was not fetched."""
    return fetched.needs("Triton", version, _is_there(version))


def fetch(version: str) -> None:
    """Put a version into its folder, once. Raises OSError where pip finds no wheel for this machine."""
    if not _is_there(version):
        with fetched.filling(fetched.folder("triton", version)) as target:
            fetched.pip("install", "--target", str(target), f"triton=={version}")


if __name__ == "__main__":
    fetched.fetch_each("Triton", VERSIONS, fetch)
