"""What a plugin has put into its engine in this process, what it could not put there, and how to take all of it out."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

_ABSENT = object()


@dataclass
class Installed:
    """One engine's record. `undo` leaves the engine as it was before, and the record empty.

    failures: feature -> why it is not in place.
    given_back: operators that the engine runs itself again, because their prewarm failed.
    """

    failures: dict[str, str] = field(default_factory=dict)
    given_back: set[str] = field(default_factory=set)
    _changes: list[Callable[[], object]] = field(default_factory=list)
    _wrappers: list[tuple[object, str]] = field(default_factory=list)

    def put(self, table: MutableMapping[str, Any], key: str, value: Any) -> None:
        """Put a value into a table of the engine's. Nothing changes where it is there already."""
        before = table.get(key, _ABSENT)
        if before is not value:
            table[key] = value
            self.on_undo(partial(_restore_item, table, key, value, before))

    def set(self, owner: object, name: str, value: Any) -> None:
        """Set an attribute of the engine's. Nothing changes where it has this value already."""
        before = vars(owner).get(name, _ABSENT)
        if before is not value:
            setattr(owner, name, value)
            self.on_undo(partial(_restore_attribute, owner, name, value, before))

    def wrap(self, owner: object, name: str, wrapper_of: Callable[[Any], Any]) -> None:
        """Set a method to a wrapper of what it is, once: `wrapper_of` is not called again before `undo`."""
        if not any(owner is wrapped and name == its for wrapped, its in self._wrappers):
            self.set(owner, name, wrapper_of(getattr(owner, name)))
            self._wrappers.append((owner, name))

    def on_undo(self, restore: Callable[[], object]) -> None:
        """Have `undo` call this: the changes that were made last are undone first."""
        self._changes.append(restore)

    def undo(self) -> None:
        """Restore the engine. What someone else has put over a change since stays theirs."""
        while self._changes:
            self._changes.pop()()
        self._wrappers.clear()
        self.failures.clear()
        self.given_back.clear()


def _restore_item(table: MutableMapping[str, Any], key: str, value: Any, before: Any) -> None:
    if table.get(key, _ABSENT) is not value:
        return
    if before is _ABSENT:
        del table[key]
    else:
        table[key] = before


def _restore_attribute(owner: object, name: str, value: Any, before: Any) -> None:
    if vars(owner).get(name, _ABSENT) is not value:
        return
    if before is _ABSENT:
        delattr(owner, name)
    else:
        setattr(owner, name, before)
