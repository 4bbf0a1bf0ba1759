"""The record of what a plugin changed in its engine: what it undoes, in which order, and what it leaves."""

from __future__ import annotations

from typing import Any

from serving_ops.integrations.common.record import Installed


class Engine:
    """An engine's class, as a plugin changes it."""

    mode = "theirs"

    def run(self) -> list[str]:
        return ["engine"]

    @classmethod
    def make(cls) -> str:
        return cls.__name__


def _around(run: Any) -> Any:
    return lambda self: ["ours", *run(self)]


def test_undo_restores_items_attributes_and_methods() -> None:
    installed, table = Installed(), {"kept": 1, "changed": 2}
    attributes = dict(vars(Engine))
    installed.put(table, "changed", 3)
    installed.put(table, "added", 4)
    installed.set(Engine, "mode", "ours")
    installed.set(Engine, "added", True)
    installed.wrap(Engine, "run", _around)
    installed.wrap(Engine, "make", lambda make: classmethod(lambda cls: f"ours of {make.__func__(cls)}"))
    assert table == {"kept": 1, "changed": 3, "added": 4}
    assert (Engine.mode, Engine().run(), Engine.make()) == ("ours", ["ours", "engine"], "ours of Engine")
    installed.undo()
    assert table == {"kept": 1, "changed": 2}
    assert dict(vars(Engine)) == attributes


def test_what_is_put_in_place_again_is_there_once_and_undone_at_once() -> None:
    installed, table, value = Installed(), {}, object()
    for _ in range(2):
        installed.put(table, "key", value)
        installed.wrap(Engine, "run", _around)
    assert Engine().run() == ["ours", "engine"]
    installed.undo()
    assert table == {}
    assert Engine().run() == ["engine"]
    installed.wrap(Engine, "run", _around)
    assert Engine().run() == ["ours", "engine"]
    installed.undo()


def test_the_last_change_is_undone_first() -> None:
    installed, order = Installed(), []
    for name in ("first", "second"):
        installed.on_undo(lambda name=name: order.append(name))
    installed.undo()
    installed.undo()
    assert order == ["second", "first"]


def test_models_that_are_loaded_again_and_again_do_not_grow_the_record() -> None:
    installed, on = Installed(), ["a layer"]
    for _ in range(3):
        model = Engine()
        installed.mark(model, mode="ours", added=True)
        installed.on_undo(on.clear)
    assert (len(installed._changes), len(installed._marks)) == (1, 1)
    installed.undo()
    assert vars(model) == {}
    assert on == []
    assert installed == Installed()


def test_what_someone_else_put_over_a_change_stays() -> None:
    installed, table = Installed(), {}
    installed.put(table, "key", "ours")
    table["key"] = "theirs"
    installed.undo()
    assert table == {"key": "theirs"}


def test_undo_forgets_failures_and_what_was_given_back() -> None:
    installed = Installed(failures={"a feature": "a reason"}, given_back={"rms_norm"})
    installed.undo()
    assert installed == Installed()
