"""The record of what a plugin changed in its engine in this process, what it could not change, and how to undo it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

_ABSENT = object()


@dataclass
class Installed:
    """One engine's record. `undo` leaves the engine as it was before, and the record empty.

    failures: feature -> why it is not in place.
    given_back: operators that the engine runs itself again, because their prewarm failed or its model is not for them.
    """

    failures: dict[str, str] = field(default_factory=dict)
    given_back: set[str] = field(default_factory=set)
    _changes: list[Callable[[], object]] = field(default_factory=list)
    _marks: weakref.WeakKeyDictionary[Any, set[str]] = field(default_factory=weakref.WeakKeyDictionary)
    _wrappers: list[tuple[object, str]] = field(default_factory=list)
    _originals: dict[Any, Any] = field(default_factory=dict)

    def put(self, table: MutableMapping[str, Any], key: str, value: Any) -> None:
        """Put a value into one of the engine's tables. Does nothing if the table has it already."""
        self._change(table, table.__setitem__, table.__delitem__, key, value)

    def set(self, owner: object, name: str, value: Any) -> None:
        """Set an attribute of one of the engine's objects. Does nothing if it has this value already."""
        self._change(vars(owner), partial(setattr, owner), partial(delattr, owner), name, value)

    def _change(self, now: Mapping[str, Any], put: Any, delete: Any, key: str, value: Any) -> None:
        before = now.get(key, _ABSENT)
        if before is value:
            return

        def restore() -> None:
            if now.get(key, _ABSENT) is value:
                delete(key) if before is _ABSENT else put(key, before)

        put(key, value)
        self.on_undo(restore)

    def wrap(self, owner: object, name: str, wrapper_of: Callable[[Any], Any]) -> None:
        """Replace a method by a wrapper of it. Does nothing for a method that is wrapped already."""
        if not any(owner is wrapped and name == its for wrapped, its in self._wrappers):
            own = getattr(owner, name)
            wrapper = wrapper_of(own)
            self.set(owner, name, wrapper)
            self._wrappers.append((owner, name))
            self._originals[wrapper] = own

    def original(self, method: Any) -> Any:
        """Return the function that a method was before `wrap`. What other code put around it stays."""
        function = getattr(method, "__func__", method)  # of an object it is bound
        while function in self._originals:
            function = self._originals[function]
        return function

    def mark(self, part: Any, **attributes: Any) -> None:
        """Give one of a model's parts attributes of ours. A model that is gone leaves nothing in the record."""
        for name, value in attributes.items():
            setattr(part, name, value)
        self._marks.setdefault(part, set()).update(attributes)

    def take_over(self, parts: Sequence[Any], method: str, wrapper_of: Callable[[Any], Any], mark: str) -> list[str]:
        """Wrap a method of these parts' classes, and give each part the attribute `mark`, by which the wrapper knows
        it; returns the names of the classes."""
        classes = {type(part) for part in parts}
        for cls in classes:
            self.wrap(cls, method, wrapper_of)
        for part in parts:
            self.mark(part, **{mark: True})
        return sorted(cls.__name__ for cls in classes)

    def on_undo(self, restore: Callable[[], object]) -> None:
        """Have `undo` call `restore`, once however often it is given. `undo` starts with the last change."""
        if restore not in self._changes:
            self._changes.append(restore)

    def undo(self) -> None:
        """Restore the engine. A change that other code has replaced since is left alone."""
        while self._changes:
            self._changes.pop()()
        for part, names in self._marks.items():
            for name in names:
                vars(part).pop(name, None)
        self._marks.clear()
        self._wrappers.clear()
        self._originals.clear()
        self.failures.clear()
        self.given_back.clear()
