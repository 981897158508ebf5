"""The state of a document: values by object and field, of which the last written one counts, whatever comes first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dhlab.annotations.geojson import classification_of
from dhlab.annotations.records import CLASS, GEOMETRY, pack_fields
from dhlab.display import class_color

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from dhlab.annotations.edits import Change, Edit, Stamp
    from dhlab.annotations.records import Records

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

    def __init__(self, values: Records, essential: str) -> None:
        self._essential = essential
        self.values: dict[str, Mapping[str, Any]] = dict(values)
        self._stamps: dict[str, dict[str, Stamp]] = {}

    def write(self, key: str, fields: Mapping[str, Any], stamp: Stamp) -> None:
        """Write values of one key; None takes a field away."""
        stamps = self._stamps.get(key, {})
        later = fields
        if stamps:
            later = {name: value for name, value in fields.items() if stamps.get(name, OLDEST) <= stamp}
        self._stamps[key] = {**stamps, **dict.fromkeys(later, stamp)}
        merged = {**self.values.get(key, {}), **later}
        if None in later.values():
            merged = {name: value for name, value in merged.items() if value is not None}
        self.values[key] = merged

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

    def __init__(self, objects: Records, classes: Records) -> None:
        self.objects, self.classes = Registers(objects, GEOMETRY), Registers(classes, "color")
        # Names that an edit gave to an object; the class itself may have been removed by somebody else meanwhile.
        self._given: set[str] = set()
        self._labels: dict[str, dict[str, Any]] | None = None

    def merge(self, edit: Edit, changes: Iterable[Change]) -> tuple[list[str], bool]:
        """Write what an edit changed; return the ids of its objects, and whether it changed classes."""
        ids, classes = [], False
        named: set[str] = set()
        for change in changes:
            if change.kind == "object":
                after = pack_fields(change.after)
                self.objects.write(change.key, after, edit.stamp)
                ids.append(change.key)
                if name := after.get(CLASS):
                    named.add(name)
            else:
                self.classes.write(change.key, change.after, edit.stamp)
                classes = True
        self._given |= named
        # A class that was removed comes back with an object that has it.
        classes |= not named <= (self._labels or {}).keys()
        if classes:
            self._labels = None
        return ids, classes

    def known_classes(self) -> dict[str, Mapping[str, Any]]:
        """Return the fields of every class that was set or that an object has, by name."""
        found = self.classes.present()
        if missing := self._given - found.keys():
            used = {fields.get(CLASS) for fields in self.objects.present().values()}
            for name in sorted(missing & used):
                last = self.classes.values.get(name, {})
                found[name] = {"color": last.get("color") or class_color(len(found))}
        return found

    def labels(self) -> dict[str, dict[str, Any]]:
        """Return the classification of every known class by name, as QuPath writes it."""
        if self._labels is None:
            known = self.known_classes()
            self._labels = {name: classification_of(name, fields["color"]) for name, fields in known.items()}
        return self._labels
