"""A DeepHealth YAML file as it stands: locations, labels, values and splits, each checked."""

from __future__ import annotations

import os.path
import re
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dhlab.datasets.splitting import check_splits
from dhlab.errors import BadFileError, BadValueError, DHLabWarning, NotFoundError, UnknownNameError, suggest
from dhlab.io import READERS, suffix_of

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["OURS", "Label", "Listing", "read_listing"]

URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
# Our own top-level key: what the format cannot say. Other readers pass over it.
OURS = "dhlab"


@dataclass(frozen=True)
class Label:
    """One label as it stands in the file; nothing if the sample has none.

    Parameters
    ----------
    classes
        Class indices.
    several
        Whether it is a list that has not exactly one entry.
    mask
        Path of a mask.
    """

    classes: tuple[int, ...] | None = None
    several: bool = False
    mask: str | None = None


@dataclass(frozen=True)
class Listing:
    """What a file says.

    Parameters
    ----------
    name
        Name of the dataset; else that of the file.
    classes
        Class names, perhaps none.
    places
        Paths of the files of each sample.
    labels
        Label of each sample.
    features
        Values by feature, a text or None per sample.
    splits
        Indices of samples by split.
    ours
        What dhlab added to the format.
    """

    name: str
    classes: tuple[str, ...]
    places: tuple[tuple[str, ...], ...]
    labels: tuple[Label, ...]
    features: dict[str, tuple[str | None, ...]]
    splits: dict[str, tuple[int, ...]]
    ours: Mapping[str, Any]


def read_listing(path: Path, *, allow_outside: bool) -> Listing:
    """Read a DeepHealth YAML file; no other file is opened.

    Parameters
    ----------
    path
        The file, absolute.
    allow_outside
        Take locations that leave its folder.

    Raises
    ------
    NotFoundError
        If it is not there.
    BadFileError
        If it is no YAML.
    UnknownNameError
        If a label is no class, or a value no feature.
    BadValueError
        If anything else is not as the format has it; the message names the file and the image.
    """
    return _Reader(path, allow_outside).read()


class _Reader:
    """Reads one file; every fault names it and the image concerned."""

    def __init__(self, source: Path, allow_outside: bool) -> None:
        self.source = source
        self.root = os.path.realpath(source.parent)
        self.allow_outside = allow_outside
        self.resolved: dict[str, str] = {}
        self.classes: tuple[str, ...] = ()
        self.unnamed = 0

    def read(self) -> Listing:
        whole = self._load()
        self.classes = self._names(whole, "classes")
        entries = whole.get("images")
        if not isinstance(entries, list) or not entries:
            raise self._fault(None, f"images is {_short(entries)}; expected a list of at least one location")
        places, labels, rows = [], [], []
        seen: dict[tuple[str, ...], int] = {}
        declared = self._names(whole, "features")
        for index, entry in enumerate(entries):
            item = entry if isinstance(entry, dict) else {"location": entry}
            place = self._location(index, item.get("location"))
            if place in seen:
                raise self._fault(index, f"location {place[0]} is that of image {seen[place]} too; expected each once")
            seen[place] = index
            places.append(place)
            labels.append(self._label(index, item.get("label"), place))
            rows.append(self._values(index, item.get("values"), declared))
        if self.unnamed:
            warnings.warn(
                f"{self.source}: {self.unnamed} of {len(entries)} images have more values than there are features "
                f"({len(declared)}); the others are called 'value {len(declared) + 1}' and so on. Name them.",
                DHLabWarning,
                stacklevel=6,
            )
        names = dict.fromkeys([*declared, *(name for row in rows for name in row)])
        return Listing(
            name=str(whole.get("name") or self.source.stem),
            classes=self.classes,
            places=tuple(places),
            labels=tuple(labels),
            features={name: tuple(row.get(name) for row in rows) for name in names},
            splits=self._splits(whole.get("split"), len(places)),
            ours=whole[OURS] if isinstance(whole.get(OURS), dict) else {},
        )

    def _load(self) -> dict[str, Any]:
        import yaml

        try:
            text = self.source.read_text("utf-8-sig")
        except FileNotFoundError:
            raise NotFoundError(f"nothing at {self.source}; expected a DeepHealth YAML file.") from None
        except (OSError, UnicodeDecodeError) as error:
            raise BadFileError(f"{self.source} cannot be read as text: {error}.") from error
        # ECVL writes "%YAML:1.2", which is no valid directive.
        text = re.sub(r"\A\s*%YAML[^\n]*\n", "", text)
        try:
            whole = yaml.load(text, Loader=_loader())  # noqa: S506 - a safe loader that resolves less
        except (yaml.YAMLError, RecursionError) as error:
            raise BadFileError(f"{self.source} is no valid YAML: {' '.join(str(error).split())}.") from error
        if not isinstance(whole, dict):
            raise self._fault(None, f"the file holds {_short(whole)}; expected a table with images")
        return whole

    def _names(self, whole: dict[str, Any], key: str) -> tuple[str, ...]:
        listed = whole.get(key)
        if listed is None:
            return ()
        if not isinstance(listed, list) or not all(isinstance(name, str | int) for name in listed):
            raise self._fault(None, f"{key} is {_short(listed)}; expected a list of names")
        names = tuple(map(str, listed))
        if len(set(names)) != len(names):
            raise self._fault(None, f"{key} are {names}; expected each once")
        return names

    def _location(self, index: int, location: Any) -> tuple[str, ...]:
        listed = location if isinstance(location, list) else [location]
        if not listed or not all(isinstance(part, str | int) and str(part) for part in listed):
            raise self._fault(index, f"location is {_short(location)}; expected a path or a list of paths")
        return tuple(self._inside(index, str(part)) for part in listed)

    def _inside(self, index: int, text: str) -> str:
        """Return a path as it stands below the folder, refusing one that leaves it or the machine."""
        if URL.match(text):
            raise self._fault(index, f"{text} is a URL; dhlab downloads nothing. Fetch it and list the file")
        path = os.path.normpath(os.path.join(self.source.parent, text))  # noqa: PTH118 - 25,000 of them, in a second
        if not self.allow_outside:
            folder, name = os.path.split(path)
            if folder not in self.resolved:
                self.resolved[folder] = os.path.realpath(folder)
            real = os.path.realpath(path) if os.path.islink(path) else os.path.join(self.resolved[folder], name)  # noqa: PTH114, PTH118 - quicker than a Path for every file
            if os.path.commonpath([real, self.root]) != self.root:
                raise self._fault(
                    index, f"{text} leaves the dataset's folder {self.root}. Move it there, or pass allow_outside=True"
                )
        return path

    def _label(self, index: int, label: Any, place: tuple[str, ...]) -> Label:
        if label is None:
            return Label()
        if isinstance(label, list):
            return Label(tuple(dict.fromkeys(self._class(index, part) for part in label)), len(label) != 1)
        if isinstance(label, int) or label in self.classes:
            return Label((self._class(index, label),))
        if isinstance(label, str) and self._is_path(label, place):
            return Label(mask=self._inside(index, label))
        return Label((self._class(index, label),))

    def _class(self, index: int, label: Any) -> int:
        if isinstance(label, str) and label in self.classes:
            return self.classes.index(label)
        if not self.classes:
            raise self._fault(index, f"label {_short(label)}, but the file lists no classes")
        if isinstance(label, int):
            # A number that is no position may still be a name, as in classes: [10, 20].
            if 0 <= label < len(self.classes):
                return label
            if str(label) in self.classes:
                return self.classes.index(str(label))
            raise self._fault(index, f"label {label}; expected a class index, 0 to {len(self.classes) - 1}")
        raise UnknownNameError(
            f"{self.source}, image {index}: label {_short(label)} is no class.{suggest(str(label), self.classes)}"
        )

    def _is_path(self, label: str, place: tuple[str, ...]) -> bool:
        """Tell whether a text that is no class is a path: it has a suffix that is read, or paths here have none."""
        if not self.classes or suffix_of(Path(label), READERS) is not None or "/" in label:
            return True
        return not Path(place[0]).suffix or (self.source.parent / label).is_file()

    def _values(self, index: int, values: Any, declared: tuple[str, ...]) -> dict[str, str | None]:
        if values is None:
            return {}
        if isinstance(values, list):
            # Published files list more values than features; what has no name is known by its position.
            self.unnamed += len(values) > len(declared)
            names = (*declared, *(f"value {place + 1}" for place in range(len(declared), len(values))))
            values, declared = dict(zip(names, values, strict=False)), names
        if not isinstance(values, dict):
            raise self._fault(index, f"values are {_short(values)}; expected a list, or names with values")
        row = {}
        for name, value in values.items():
            if declared and str(name) not in declared:
                raise UnknownNameError(
                    f"{self.source}, image {index}: {name!r} is no feature.{suggest(str(name), declared)}"
                )
            if isinstance(value, list | dict):
                raise self._fault(index, f"value of {name!r} is {_short(value)}; expected one text or number")
            row[str(name)] = None if value is None else str(value)
        return row

    def _splits(self, splits: Any, count: int) -> dict[str, tuple[int, ...]]:
        if splits is None:
            return {}
        if not isinstance(splits, dict) or not all(isinstance(v, list | None) for v in splits.values()):
            raise self._fault(None, f"split is {_short(splits)}; expected names with lists of image indices")
        try:
            return check_splits({str(name): indices or () for name, indices in splits.items()}, count)
        except BadValueError as error:
            raise BadValueError(f"{self.source}: {error}") from error

    def _fault(self, index: int | None, text: str) -> BadValueError:
        where = "" if index is None else f", image {index}"
        return BadValueError(f"{self.source}{where}: {text}.")


@cache
def _loader() -> Any:
    """Return a safe YAML loader that takes plain texts for what they say, but for null and whole numbers.

    YAML 1.1 would make false of the class ``no``, 10 of the patient ``0012`` and a date of ``2020-01-31``.
    """
    import yaml

    base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    loader: Any = type("PlainLoader", (base,), {"yaml_implicit_resolvers": {}})
    loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
    loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^(?:0|-?[1-9][0-9]{0,8})$"), list("-0123456789"))
    return loader


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
