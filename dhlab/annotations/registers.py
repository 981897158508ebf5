"""The state of a document: values by object and field, of which the last written one counts, whatever comes first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dhlab.annotations.records import CLASS, GEOMETRY, with_geometry_bytes
from dhlab.display import class_color

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from dhlab.annotations.collection import RGB
    from dhlab.annotations.edits import Change, Edit, Stamp

__all__ = ["Registers", "State"]

# What a file held before the first edit is older than every edit.
OLDEST: Stamp = (0, "")


class Registers:
    """Values by key and field; each remembers when it was written, and only a later one replaces it.

    Shapiro, Preguiça, Baquero and Zawirski 2011, https://inria.hal.science/inria-00555588, "LWW-element": two writers
    that know the same edits hold the same values, in whatever order they came.

    Parameters
    ----------
    values
        What there was before the first edit; the inner mappings are never changed, but replaced.
    essential
        Field without which a key does not exist: edits may know it in parts only.
    """

    def __init__(self, values: Mapping[str, Mapping[str, Any]], essential: str) -> None:
        self._essential = essential
        self.values: dict[str, Mapping[str, Any]] = dict(values)
        self._stamps: dict[str, dict[str, Stamp]] = {}

    def write(self, key: str, fields: Mapping[str, Any], stamp: Stamp) -> None:
        """Write values of one key; None takes a field away."""
        stamps = self._stamps.setdefault(key, {})
        later = {name: value for name, value in fields.items() if stamps.get(name, OLDEST) <= stamp}
        stamps.update(dict.fromkeys(later, stamp))
        merged = {**self.values.get(key, {}), **later}
        self.values[key] = {name: value for name, value in merged.items() if value is not None}

    def stamps(self, key: str) -> Mapping[str, Stamp]:
        """Return when each field of a key was written, of those that an edit wrote."""
        return self._stamps.get(key, {})

    def get(self, key: str) -> Mapping[str, Any] | None:
        """Return the values of what exists, or None."""
        fields = self.values.get(key)
        return fields if fields is not None and self._exists(fields) else None

    def present(self) -> dict[str, Mapping[str, Any]]:
        """Return the values of all that exists, in the order in which it came."""
        return {key: fields for key, fields in self.values.items() if self._exists(fields)}

    def _exists(self, fields: Mapping[str, Any]) -> bool:
        return self._essential in fields and fields.get("exists") is not False


class State:
    """Objects and classes after some edits.

    Parameters
    ----------
    objects, classes
        Fields by id and by name, before the first edit.
    """

    def __init__(self, objects: Mapping[str, Mapping[str, Any]], classes: Mapping[str, Mapping[str, Any]]) -> None:
        self.objects, self.classes = Registers(objects, GEOMETRY), Registers(classes, "color")
        # Names that an edit gave to an object; the class itself may have been removed by somebody else meanwhile.
        self._given: set[str] = set()

    def merge(self, edit: Edit, changes: Iterable[Change]) -> tuple[list[str], bool]:
        """Write what an edit changed; return the ids of its objects, and whether it changed classes."""
        ids, classes = [], False
        for change in changes:
            if change.kind == "object":
                self.objects.write(change.key, with_geometry_bytes(change.after), edit.stamp)
                ids.append(change.key)
                if label := change.after.get(CLASS):
                    self._given.add(label["name"])
            else:
                self.classes.write(change.key, change.after, edit.stamp)
                classes = True
        return ids, classes

    def known_classes(self) -> dict[str, Mapping[str, Any]]:
        """Return the fields of every class that was set or that an object has, by name."""
        found = self.classes.present()
        if missing := self._given - found.keys():
            used = {label["name"] for fields in self.objects.present().values() if (label := fields.get(CLASS))}
            for name in sorted(missing & used):
                found[name] = {"color": class_color(len(found))}
        return found

    def colors(self) -> dict[str, RGB]:
        """Return the RGB colour of every known class by name."""
        return {name: tuple(fields["color"]) for name, fields in self.known_classes().items()}
