"""The classes of a document: what making, changing, renaming and removing one changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dhlab.annotations.checking import check_color
from dhlab.annotations.edits import Change
from dhlab.annotations.records import CLASS
from dhlab.display import class_color
from dhlab.errors import BadValueError, UnknownNameError, suggest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dhlab.annotations.collection import RGB
    from dhlab.annotations.registers import State

__all__ = ["DocumentClass", "list_classes", "remove_class", "rename_class", "set_class"]

SHORTCUTS = "123456789"


@dataclass(frozen=True)
class DocumentClass:
    """A class that objects of a document can have.

    Parameters
    ----------
    name
        Its name.
    color
        RGB.
    shortcut
        Key that chooses it, or an empty text.
    """

    name: str
    color: RGB
    shortcut: str


def list_classes(state: State) -> tuple[DocumentClass, ...]:
    """Return the classes, with a digit as the shortcut of each that was not given one."""
    known = state.known_classes()
    given = {name: fields.get("shortcut") for name, fields in known.items()}
    free = iter([key for key in SHORTCUTS if key not in given.values()])
    return tuple(
        DocumentClass(name, tuple(fields["color"]), next(free, "") if (key := given[name]) is None else key)
        for name, fields in known.items()
    )


def set_class(state: State, name: str, *, color: RGB | None = None, shortcut: str | None = None) -> list[Change]:
    """Return the changes that make a class, or give it a colour or shortcut. See `Document.set_class`."""
    _check_name(name)
    known = state.known_classes()
    present = known.get(name)
    after: dict[str, Any] = {"exists": True} if present is None else {}
    if color is not None or present is None:
        after["color"] = check_color(class_color(len(known)) if color is None else color)
    if shortcut is not None:
        after["shortcut"] = _check_shortcut(shortcut, name, known)
    was = present or {"exists": False}
    changed = {key: value for key, value in after.items() if not _same_value(was.get(key), value)}
    return [Change("class", name, {key: was.get(key) for key in changed}, changed)] if changed else []


def rename_class(
    state: State, name: str, to: str, *, color: RGB | None = None, shortcut: str | None = None
) -> list[Change]:
    """Return the changes that rename a class. See `Document.rename_class`."""
    known = _find(state, name)
    if name == to:
        return set_class(state, name, color=color, shortcut=shortcut)
    _check_name(to)
    if to in known:
        raise BadValueError(f"there is a class {to!r} already. To join them: remove_class({name!r}, to={to!r}).")
    old = known[name]
    after = {
        "exists": True,
        "color": list(old["color"]) if color is None else check_color(color),
        "shortcut": old.get("shortcut") if shortcut is None else _check_shortcut(shortcut, name, known),
    }
    gone = state.classes.values.get(to, {})
    before = {key: gone.get(key) for key in after} | {"exists": False}
    return [
        *_reclass(state, name, to),
        Change("class", to, before, after),
        Change("class", name, dict(old), {"exists": False}),
    ]


def remove_class(state: State, name: str, to: str | None = None) -> list[Change]:
    """Return the changes that remove a class; its objects get the class `to`. See `Document.remove_class`."""
    known = _find(state, name)
    changes = _reclass(state, name, to)
    if changes and (to is None or to == name):
        have = "1 object has" if len(changes) == 1 else f"{len(changes):,} objects have"
        raise BadValueError(
            f'{have} the class {name!r}; expected another class for them: remove_class({name!r}, to="…").'
        )
    made = set_class(state, to) if changes and to is not None and to not in known else []
    return [*made, *changes, Change("class", name, dict(known[name]), {"exists": False})]


def _find(state: State, name: str) -> dict[str, Mapping[str, Any]]:
    """Return the known classes, of which a name must be one."""
    known = state.known_classes()
    if name not in known:
        raise UnknownNameError(f"no class {name!r}.{suggest(name, known)}")
    return known


def _reclass(state: State, name: str, to: str | None) -> list[Change]:
    users = [key for key, fields in state.objects.present().items() if fields.get(CLASS) == name]
    return [Change("object", key, {CLASS: name}, {CLASS: to}) for key in users]


def _check_name(name: str) -> None:
    if not str(name).strip():
        raise BadValueError(f"class name {name!r}; expected some text.")


def _check_shortcut(shortcut: str, name: str, known: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a shortcut that no class but one of a name may have; an empty text is none at all."""
    if len(shortcut) > 1:
        raise BadValueError(f"shortcut {shortcut!r}; expected one character.")
    if whose := [n for n, f in known.items() if n != name and shortcut and f.get("shortcut") == shortcut]:
        raise BadValueError(f"shortcut {shortcut!r} belongs to {whose[0]!r}; choose another.")
    return shortcut


def _same_value(one: Any, other: Any) -> bool:
    return (list(one) if isinstance(one, tuple) else one) == other
