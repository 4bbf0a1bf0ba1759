"""What tests share and make once, or fail to make once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any


def once(make: Callable[..., Any]) -> Callable[..., Any]:
    """As functools.cache, for failures too: an engine that does not start is not started again by every test."""

    @cache
    def attempt(*args: Any, **more: Any) -> tuple[Any, BaseException | None]:
        try:
            return make(*args, **more), None
        except Exception as error:
            return None, error

    def made(*args: Any, **more: Any) -> Any:
        result, error = attempt(*args, **more)
        if error is not None:
            raise error
        return result

    return made
