"""Importing the package without its C++ library says so, once, and what to do."""

from __future__ import annotations

import subprocess
import sys

import pytest

import serving_ops
from serving_ops import extension

WITHOUT_LIBRARY = (
    "import pathlib; is_file = pathlib.Path.is_file; "
    "pathlib.Path.is_file = lambda self: not self.name.endswith('.so') and is_file(self); "
    "import torch; {before}; import serving_ops, serving_ops.nn; assert serving_ops.cpp_library() is None"
)


def said_by(program: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return done.stderr.splitlines()


def test_a_missing_library_is_one_line_with_what_to_do() -> None:
    (line,) = said_by(WITHOUT_LIBRARY.format(before="pass"))
    assert line.startswith("serving_ops runs without its C++ library: ")
    assert extension.REMEDY in line


def test_nothing_is_said_where_the_library_is_not_built() -> None:
    assert said_by(WITHOUT_LIBRARY.format(before="import sys; sys.platform = 'win32'")) == []


@pytest.mark.skipif(serving_ops.cpp_library() is None, reason="the C++ library is not built")
def test_nothing_is_said_where_the_library_is_there() -> None:
    assert said_by("import serving_ops") == []
