"""`contract.def`, which C++ includes, as Python reads it. Imports neither torch nor Triton."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

_FILE = Path(__file__).with_name("contract.def").read_bytes()
_ENTRY = re.compile(r"^(OP|DTYPE|FLAG|PARAMETER|SCALE_FORM|FIELD|ROWS|LIMIT)\((.*?)\)", re.MULTILINE)
_ENTRIES = [(kind, words.split(", ")) for kind, words in _ENTRY.findall(_FILE.decode())]

DIGEST = hashlib.sha256(_FILE).hexdigest()
"""Of the file, as `kernels/CMakeLists.txt` puts it into the library."""


def _fields() -> Iterator[tuple[str, str]]:
    for kind, (name, *types) in _ENTRIES:
        if kind == "FIELD":
            yield name, types[0]
        if kind == "ROWS":
            yield from ((f"{name}_ptr", "pointer"), (f"{name}_outer_stride", "i64"), (f"{name}_row_stride", "i64"))


def _of(kind: str) -> list[list[str]]:
    return [words for found, words in _ENTRIES if found == kind]


OPS = tuple(name for _, name in _of("OP"))
DTYPES = tuple(name for (name,) in _of("DTYPE"))
FLAGS = {name: int(bit) for _, name, bit in _of("FLAG")}
PARAMETERS = tuple(name for _, name in _of("PARAMETER"))
SCALE_FORMS = tuple(name for (name,) in _of("SCALE_FORM"))
FIELDS = dict(_fields())
"""What a kernel may be passed: names and types, in the order in which C++ holds them."""

LIMITS = {name: int(value) for _, name, value in _of("LIMIT")}
