"""The text in which DeepHealth's ECVL writes augmentations, read and written."""

from __future__ import annotations

import math
import re
import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NoReturn

from dhlab.augment.colour import Brightness, Gamma
from dhlab.augment.containers import Container, OneOf
from dhlab.augment.distortions import Elastic, GridDistortion, OpticalDistortion
from dhlab.augment.geometry import CenterCrop, Flip, Geometric, Mirror, RandomCrop, Resize, Rotate, Transpose
from dhlab.augment.levels import ScaleFromTo, ScaleTo
from dhlab.augment.noise import CoarseDropout, GaussianBlur, LaplaceNoise, Pepper, PoissonNoise, Salt, SaltAndPepper
from dhlab.augment.output import DivBy255, Normalize, Output, ToFloat32
from dhlab.augment.pipeline import Compose
from dhlab.augment.steps import Stage, Transform, levels_of
from dhlab.errors import BadValueError, DHLabError, DHLabWarning, UnknownNameError, suggest

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["parse_augmentations", "to_text"]

SEQUENCE, CHOICE, END = "SequentialAugmentationContainer", "OneOfAugmentationContainer", "end"
INTERPOLATIONS = {"nearest": "nearest", "linear": "bilinear", "cubic": "bicubic", "area": "bilinear"}
BORDERS = ("constant", "replicate", "reflect", "reflect101", "wrap")
WORD = re.compile(r"[^\s=]+")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
Values = dict[str, Any]


@dataclass(frozen=True)
class Argument:
    """What an argument may be: ``"range"`` ``[a,b]``, ``"vector"`` ``(a,b)``, ``"number"`` or ``"text"``."""

    kinds: tuple[str, ...]
    required: bool = False


@dataclass(frozen=True)
class Form:
    """How an augmentation is written.

    Parameters
    ----------
    arguments
        By name.
    read
        Takes their values, returns the step.
    write
        Takes a step, returns its values.
    kind
        The step's type.
    """

    arguments: dict[str, Argument]
    read: Callable[[Values], Transform]
    write: Callable[[Any], Values]
    kind: type[Transform]


def parse_augmentations(text: str) -> Compose:
    """Read a pipeline from the text of DeepHealth's ECVL: one augmentation a line, containers closed by ``end``.

    The meaning is ECVL's, but: masks are never blended, whatever ``gt_interp`` says, and stay class indices;
    unknown names are errors; optional arguments may be left out; reflect-101 is spelt ``reflect101`` or
    ``reflect_101`` everywhere; pictures turn about their true middle.

    Parameters
    ----------
    text
        The text.

    Returns
    -------
    Compose
        The pipeline.

    Raises
    ------
    UnknownNameError
        If there is no such augmentation or argument; the message shows the place, and the nearest names.
    BadValueError
        If a value is not what its argument takes, or a container is not closed.
    """
    reader = _Reader(text)
    steps: list[Transform] = []
    while reader.next_word():
        steps = reader.join(steps, reader.augmentation())
    if not steps:
        raise BadValueError("the text holds no augmentation; expected one a line, such as 'AugMirror p=0.5'.")
    if len(steps) == 1 and isinstance(steps[0], Compose):
        return steps[0]
    return reader.build(lambda: Compose(tuple(steps)))


class _Reader:
    """Goes through the text line by line."""

    def __init__(self, text: str) -> None:
        self.lines = text.splitlines()
        self.row, self.column = 0, 0
        self.place = (0, 0)

    def fail(self, kind: type[DHLabError], message: str, place: tuple[int, int] | None = None) -> NoReturn:
        row, column = place or self.place
        line = self.lines[row] if row < len(self.lines) else ""
        raise kind(f"line {row + 1}, column {column + 1}: {message}\n    {line}\n    {' ' * column}^")

    def build(self, make: Callable[[], Any], place: tuple[int, int] | None = None) -> Any:
        """Return what `make` makes; its errors tell the place."""
        try:
            return make()
        except (BadValueError, UnknownNameError) as error:
            self.fail(type(error), str(error), place)

    def next_word(self) -> str:
        """Return the next word on this or a later line without passing it; empty at the end."""
        while self.row < len(self.lines):
            rest = self.lines[self.row][self.column :]
            if rest.strip():
                self.column += len(rest) - len(rest.lstrip())
                found = WORD.match(self.lines[self.row], self.column)
                self.place = (self.row, self.column)
                return found.group() if found else self.lines[self.row][self.column]
            self.row, self.column = self.row + 1, 0
        self.place = (max(0, len(self.lines) - 1), len(self.lines[-1]) if self.lines else 0)
        return ""

    def augmentation(self) -> Transform:
        name, place = self.next_word(), self.place
        if name not in FORMS and name not in (SEQUENCE, CHOICE):
            if name == END:
                self.fail(BadValueError, "'end' closes no container.")
            hint = suggest(name, [*FORMS, SEQUENCE, CHOICE])
            self.fail(UnknownNameError, f"there is no augmentation {name!r}.{hint}")
        self.column += len(name)
        known = FORMS[name].arguments if name in FORMS else {} if name == SEQUENCE else CHOICE_ARGUMENTS
        values = self.arguments(name, known, place)
        if name in FORMS:
            step: Transform = self.build(lambda: FORMS[name].read(values), place)
            return step
        steps: list[Transform] = []
        while (word := self.next_word()) != END:
            if not word:
                self.fail(BadValueError, f"{name} of line {place[0] + 1} is not closed; expected 'end'.")
            child = self.augmentation()
            steps = self.join(steps, child) if name == SEQUENCE else [*steps, child]
        self.column += len(END)
        made: Callable[[], Transform]
        if name == SEQUENCE:
            made = lambda: Compose(tuple(steps))  # noqa: E731 - built later, like all the others
        else:
            made = lambda: OneOf(tuple(steps), p=values.get("p", 1.0))  # noqa: E731 - as above
        container: Transform = self.build(made, place)
        return container

    def join(self, steps: list[Transform], step: Transform) -> list[Transform]:
        """Add a step to those before; after one of output, levels count in its units."""
        if not any(isinstance(s, Output) for s in steps):
            if isinstance(step, Normalize):
                return [*steps, ToFloat32(1.0), step]
            return [*steps, step]
        if isinstance(step, ScaleFromTo):
            factor = (step.old[1] - step.old[0]) / (step.new[1] - step.new[0])
            mean = step.old[0] - step.new[0] * factor
            return [*steps, self.build(lambda: Normalize(mean, factor))]
        if isinstance(step, ScaleTo):
            # From the darkest to the brightest is the same whatever the units were.
            kept = [s for s in steps if not isinstance(s, Output)]
            span = step.new[1] - step.new[0]
            ending = self.build(lambda: Normalize(-step.new[0] / span, 1 / span))
            return [*kept, ScaleTo((0.0, 255.0)), ToFloat32(255.0), ending]
        if not isinstance(step, Output | Container) and step.stage != Stage.GEOMETRY:
            self.fail(BadValueError, f"{_name(step)} comes after a step that makes floats; put it before.")
        return [*steps, step]

    def arguments(self, name: str, known: dict[str, Argument], place: tuple[int, int]) -> Values:
        values: Values = {}
        line = self.lines[self.row]
        while line[self.column :].strip():
            self.column += len(line[self.column :]) - len(line[self.column :].lstrip())
            start = (self.row, self.column)
            found = WORD.match(line, self.column)
            argument = found.group() if found else line[self.column]
            if argument not in known:
                self.fail(UnknownNameError, f"{name} has no argument {argument!r}.{suggest(argument, known)}", start)
            if argument in values:
                self.fail(BadValueError, f"{argument} of {name} is there twice.", start)
            self.column += len(argument)
            equals = re.match(r"\s*=\s*", line[self.column :])
            if equals is None:
                self.fail(BadValueError, f"expected '=' and a value after {argument}.", (self.row, self.column))
            self.column += equals.end()
            start = (self.row, self.column)
            kind, value = self.value(argument, line)
            if kind not in known[argument].kinds:
                expected = " or ".join(KINDS[k] for k in known[argument].kinds)
                self.fail(BadValueError, f"{argument} of {name} is {KINDS[kind]}; expected {expected}.", start)
            values[argument] = self.build(lambda: _convert(argument, value), start)  # noqa: B023 - it is called before the loop goes on
        for argument, about in known.items():
            if about.required and argument not in values:
                self.fail(BadValueError, f"{name} lacks {argument}.", place)
        self.row, self.column = self.row + 1, 0
        return values

    def value(self, argument: str, line: str) -> tuple[str, Any]:
        start = (self.row, self.column)
        opening = line[self.column : self.column + 1]
        closing = {"[": "]", "(": ")", '"': '"'}.get(opening)
        if closing is None:
            number = NUMBER.match(line, self.column)
            if number is None:
                self.fail(
                    BadValueError, f"{argument} has no value that can be read; expected {KINDS['number']}.", start
                )
            self.column = number.end()
            return "number", float(number.group())
        end = line.find(closing, self.column + 1)
        if end < 0:
            self.fail(BadValueError, f"expected {closing} at the end of the value of {argument}.", start)
        inner, self.column = line[self.column + 1 : end], end + 1
        if opening == '"':
            return "text", inner
        numbers = []
        for part in inner.split(","):
            if not NUMBER.fullmatch(part.strip()):
                self.fail(BadValueError, f"{part.strip()!r} in the value of {argument} is no number.", start)
            numbers.append(float(part))
        if len(numbers) != 2 and (opening == "[" or argument not in ("mean", "std")):
            self.fail(BadValueError, f"{argument} has {len(numbers)} numbers; expected two.", start)
        if opening == "[" and numbers[0] > numbers[1]:
            self.fail(BadValueError, f"the range of {argument} falls; expected [lower,upper].", start)
        return ("range" if opening == "[" else "vector"), tuple(numbers)


KINDS = {"range": "a range [a,b]", "vector": "a vector (a,b)", "number": "a number", "text": 'a text in quotes "…"'}
RANGE = Argument(("range", "number"), required=True)
NUMBER_ARGUMENT = Argument(("number",))
TEXT = Argument(("text",))
CHOICE_ARGUMENTS = {"p": Argument(("number",), required=True)}
CHANCE = {"p": NUMBER_ARGUMENT}
SAMPLED = {"interp": TEXT, "gt_interp": TEXT}
BORDERED = {"border_type": TEXT, "border_value": NUMBER_ARGUMENT}


def _convert(argument: str, value: Any) -> Any:
    if argument in ("interp", "gt_interp"):
        return _interpolation(argument, value)
    if argument == "border_type":
        border = value.replace("_", "")
        if border == "transparent":
            raise BadValueError('border_type "transparent" leaves pixels undefined; choose another.')
        if border not in BORDERS:
            raise UnknownNameError(f"there is no border_type {value!r}.{suggest(value, BORDERS)}")
        return border
    return value


def _interpolation(argument: str, value: str) -> str:
    known = (*INTERPOLATIONS, "lanczos4")
    if value not in known:
        raise UnknownNameError(f"there is no interpolation {value!r}.{suggest(value, known)}")
    if argument == "gt_interp" and value != "nearest":
        warnings.warn(f"gt_interp {value!r}: masks are taken from the nearest pixel.", DHLabWarning, stacklevel=2)
    if argument == "interp" and value == "lanczos4":
        warnings.warn("interp 'lanczos4' is computed as 'cubic'.", DHLabWarning, stacklevel=2)
        return "cubic"
    return value


def _sampling(values: Values) -> Values:
    """Return the options of `Geometric`."""
    options: Values = {"interpolation": INTERPOLATIONS[values.get("interp", "linear")]}
    if "border_type" in values:
        options["border"] = values["border_type"]
    if values.get("border_type") == "constant" and "border_value" in values:
        options |= {"fill": values["border_value"], "mask_fill": int(values["border_value"])}
    return options


def _write_sampling(step: Geometric) -> Values:
    ours = {ours: theirs for theirs, ours in reversed(INTERPOLATIONS.items())}
    values: Values = {}
    if step.interpolation not in (None, "bilinear"):
        values["interp"] = ours[step.interpolation]
    return values


def _write_border(step: Geometric) -> Values:
    assert isinstance(step.fill, tuple)
    if len(set(step.fill)) > 1 or (step.border == "constant" and step.fill[0] != step.mask_fill):
        raise BadValueError(f"{step!r}: ECVL has one border_value for all channels and the mask.")
    values: Values = {} if step.border is None else {"border_type": step.border}
    return values | ({"border_value": step.fill[0]} if step.fill[0] else {})


def _swap(pair: tuple[Any, Any]) -> tuple[Any, Any]:
    return pair[1], pair[0]


def _whole(pair: tuple[float, float]) -> tuple[int, int]:
    if any(v % 1 or v < 1 for v in pair):
        raise BadValueError(f"{pair[0]:g},{pair[1]:g}; expected whole numbers of pixels, (width,height).")
    return int(pair[1]), int(pair[0])


def _pair(value: Any) -> tuple[float, float]:
    return value if isinstance(value, tuple) else (value, value)


def _scaled(pair: tuple[float, float], factor: float) -> tuple[float, float]:
    return pair[0] * factor, pair[1] * factor


def _read_rotate(values: Values) -> Transform:
    low, high = _pair(values["angle"])
    center = _swap(values["center"]) if "center" in values else None
    scale = values.get("scale", 1.0)
    return Rotate((-high, -low), center, (scale, scale), border="constant", **_sampling(values))


def _write_rotate(step: Rotate) -> Values:
    if step.scale[0] != step.scale[1] or step.border != "constant" or any(levels_of(step.fill)):
        raise BadValueError(f"{step!r}: ECVL's AugRotate has one scale and a black border.")
    values: Values = {"angle": [-step.degrees[1] + 0.0, -step.degrees[0] + 0.0]}
    values |= {} if step.center is None else {"center": _swap(step.center)}
    return values | ({} if step.scale[0] == 1 else {"scale": step.scale[0]}) | _write_sampling(step)


def _read_resize(values: Values) -> Transform:
    options = _sampling(values) | {"antialias": values.get("interp") == "area"}
    if "dims" in values:
        return Resize(_whole(values["dims"]), **options)
    return Resize(scale=_swap(values["scale"]), **options)


def _write_resize(step: Resize) -> Values:
    size: Values = {"scale": _swap(step.scale)} if step.scale else {"dims": _swap(step.size or (0, 0))}
    return size | ({"interp": "area"} if step.antialias else _write_sampling(step))


def _read_grid(values: Values) -> Transform:
    low, high = (int(v) for v in _pair(values["num_steps"]))
    # ECVL cuts off the fraction of a number drawn evenly, so the upper end never occurs.
    return GridDistortion((low, max(low, high - 1)), _pair(values["distort_limit"]), **_sampling(values))


def _write_grid(step: GridDistortion) -> Values:
    low, high = step.cells
    values: Values = {"num_steps": [low, high + (high > low)], "distort_limit": list(step.limit)}
    return values | _write_sampling(step) | _write_border(step)


def _read_channels(kind: Any, values: Values, **given: Any) -> Transform:
    """Return noise of each channel, of all alike, or of either with a probability."""
    chance = values.get("per_channel", 0.0)
    if not 0 <= chance <= 1:
        raise BadValueError(f"per_channel is {chance:g}; expected a probability from 0 to 1.")
    apart, alike = kind(per_channel=True, **given), kind(per_channel=False, **given)
    if chance in (0.0, 1.0):
        return apart if chance else alike
    return OneOf((apart, alike), weights=(chance, 1 - chance))


def _write_dropout(step: CoarseDropout) -> Values:
    if any(levels_of(step.fill)):
        raise BadValueError(f"{step!r}: ECVL's AugCoarseDropout fills with black.")
    return {"p": list(step.share), "drop_size": list(step.size), "per_channel": float(step.per_channel)}


def _specks(kind: type[Transform]) -> Form:
    return Form(
        {"p": RANGE, "per_channel": NUMBER_ARGUMENT},
        lambda v: _read_channels(kind, v, share=_pair(v["p"])),
        lambda s: {"p": list(s.share), "per_channel": float(s.per_channel)},
        kind,
    )


def _chance(kind: Any) -> Form:
    return Form(CHANCE, lambda v: kind(v.get("p", 0.5)), lambda s: {"p": s.p}, kind)


def _read_normalize(values: Values) -> Transform:
    if isinstance(values["mean"], tuple) != isinstance(values["std"], tuple):
        raise BadValueError("mean and std of AugNormalize; expected a number each, or a vector each.")
    return Normalize(values["mean"], values["std"])


def _write_normalize(step: Normalize) -> Values:
    values: Values = {"mean": step.mean, "std": step.std}
    alike = all(len(set(v)) == 1 for v in values.values())
    return {n: v[0] for n, v in values.items()} if alike else values


def _read_crop(values: Values) -> Transform:
    options: Values = {"border": "constant"} | _sampling(values) | {"interpolation": None}
    return RandomCrop(_whole(values["size"]), **options)


def _write_crop(step: CenterCrop) -> Values:
    if step.border is not None:
        raise BadValueError(f"{step!r}: ECVL's AugCenterCrop does not go beyond the edge.")
    return {} if step.size is None else {"size": _swap(step.size)}


def _write_blur(step: GaussianBlur) -> Values:
    return {"sigma": list(step.sigma)}


def _write_brightness(step: Brightness) -> Values:
    if step.factor != (1.0, 1.0):
        raise BadValueError(f"{step!r}: ECVL's AugBrightness only adds.")
    return {"beta": [v * 255 for v in step.shift]}


# ECVL's "standard deviation" is the scale of the two exponential distributions whose difference it adds, in levels.
LAPLACE = math.sqrt(2) / 255
REQUIRED = Argument(("number",), required=True)
FORMS = {
    "AugRotate": Form(
        {"angle": RANGE, "center": Argument(("vector",)), "scale": NUMBER_ARGUMENT, **SAMPLED},
        _read_rotate,
        _write_rotate,
        Rotate,
    ),
    "AugResizeDim": Form(
        {"dims": Argument(("vector",), required=True), **SAMPLED}, _read_resize, _write_resize, Resize
    ),
    "AugResizeScale": Form(
        {"scale": Argument(("vector",), required=True), **SAMPLED}, _read_resize, _write_resize, Resize
    ),
    "AugFlip": _chance(Flip),
    "AugMirror": _chance(Mirror),
    "AugTranspose": _chance(Transpose),
    "AugGaussianBlur": Form({"sigma": RANGE}, lambda v: GaussianBlur(_pair(v["sigma"])), _write_blur, GaussianBlur),
    "AugAdditiveLaplaceNoise": Form(
        {"std_dev": RANGE},
        lambda v: LaplaceNoise(_scaled(_pair(v["std_dev"]), LAPLACE), per_channel=True),
        lambda s: {"std_dev": [v / LAPLACE for v in s.std]},
        LaplaceNoise,
    ),
    "AugAdditivePoissonNoise": Form(
        {"lambda": RANGE},
        lambda v: PoissonNoise(_pair(v["lambda"]), per_channel=True),
        lambda s: {"lambda": list(s.mean)},
        PoissonNoise,
    ),
    "AugGammaContrast": Form(
        {"gamma": RANGE}, lambda v: Gamma(_pair(v["gamma"])), lambda s: {"gamma": list(s.gamma)}, Gamma
    ),
    "AugBrightness": Form(
        {"beta": RANGE},
        lambda v: Brightness((1.0, 1.0), _scaled(_pair(v["beta"]), 1 / 255)),
        _write_brightness,
        Brightness,
    ),
    "AugCoarseDropout": Form(
        {"p": RANGE, "drop_size": RANGE, "per_channel": NUMBER_ARGUMENT},
        lambda v: _read_channels(CoarseDropout, v, share=_pair(v["p"]), size=_pair(v["drop_size"])),
        _write_dropout,
        CoarseDropout,
    ),
    "AugGridDistortion": Form(
        {"num_steps": RANGE, "distort_limit": RANGE, **SAMPLED, **BORDERED}, _read_grid, _write_grid, GridDistortion
    ),
    "AugElasticTransform": Form(
        {"alpha": RANGE, "sigma": RANGE, **SAMPLED, **BORDERED},
        lambda v: Elastic(_pair(v["alpha"]), _pair(v["sigma"]), **_sampling(v)),
        lambda s: {"alpha": list(s.alpha), "sigma": list(s.sigma)} | _write_sampling(s) | _write_border(s),
        Elastic,
    ),
    "AugOpticalDistortion": Form(
        {"distort_limit": RANGE, "shift_limit": RANGE, **SAMPLED, **BORDERED},
        lambda v: OpticalDistortion(_pair(v["distort_limit"]), _pair(v["shift_limit"]), **_sampling(v)),
        lambda s: (
            {"distort_limit": list(s.limit), "shift_limit": list(s.shift)} | _write_sampling(s) | _write_border(s)
        ),
        OpticalDistortion,
    ),
    "AugSalt": _specks(Salt),
    "AugPepper": _specks(Pepper),
    "AugSaltAndPepper": _specks(SaltAndPepper),
    "AugNormalize": Form(
        dict.fromkeys(("mean", "std"), Argument(("number", "vector"), required=True)),
        _read_normalize,
        _write_normalize,
        Normalize,
    ),
    "AugCenterCrop": Form(
        {"size": Argument(("vector",))},
        lambda v: CenterCrop(_whole(v["size"]) if "size" in v else None),
        _write_crop,
        CenterCrop,
    ),
    "AugRandomCrop": Form(
        {"size": Argument(("vector",), required=True), **BORDERED},
        _read_crop,
        lambda s: {"size": _swap(s.size)} | _write_border(s),
        RandomCrop,
    ),
    "AugToFloat32": Form(
        {"divisor": NUMBER_ARGUMENT, "divisor_gt": NUMBER_ARGUMENT},
        lambda v: ToFloat32(v.get("divisor", 1.0), v.get("divisor_gt", 1.0)),
        lambda s: {"divisor": s.divisor, "divisor_gt": s.mask_divisor},
        ToFloat32,
    ),
    "AugDivBy255": Form({}, lambda v: DivBy255(), lambda s: {}, DivBy255),  # noqa: ARG005 - all forms are asked alike
    "AugScaleTo": Form(
        dict.fromkeys(("new_min", "new_max"), REQUIRED),
        lambda v: ScaleTo((v["new_min"], v["new_max"])),
        lambda s: {"new_min": s.new[0], "new_max": s.new[1]},
        ScaleTo,
    ),
    "AugScaleFromTo": Form(
        dict.fromkeys(("old_min", "old_max", "new_min", "new_max"), REQUIRED),
        lambda v: ScaleFromTo((v["old_min"], v["old_max"]), (v["new_min"], v["new_max"])),
        lambda s: {"old_min": s.old[0], "old_max": s.old[1], "new_min": s.new[0], "new_max": s.new[1]},
        ScaleFromTo,
    ),
}


def to_text(pipeline: Transform) -> str:
    """Write a pipeline in the text of DeepHealth's ECVL, which `parse_augmentations` reads.

    Parameters
    ----------
    pipeline
        The pipeline.

    Returns
    -------
    str
        One augmentation a line.

    Raises
    ------
    BadValueError
        If ECVL has no augmentation that does the same.
    """
    return "\n".join(_lines(pipeline, 0)) + "\n"


def _name(step: Transform) -> str:
    found = [name for name, form in FORMS.items() if type(step) is form.kind]
    if isinstance(step, Resize):
        found = ["AugResizeScale" if step.scale else "AugResizeDim"]
    if not found:
        raise BadValueError(f"{step!r}: ECVL has no such augmentation.")
    return found[0]


def _lines(step: Transform, depth: int) -> list[str]:
    indent = "    " * depth
    if isinstance(step, Compose) and step.p == 1:
        inner = [line for child in step.steps for line in _lines(child, depth + 1)]
        return [f"{indent}{SEQUENCE}", *inner, f"{indent}{END}"]
    if isinstance(step, OneOf) and step.weights and step.p == 1 and len(step.steps) == 2:
        apart, alike = step.steps
        if getattr(apart, "per_channel", False) and replace(apart, per_channel=False) == alike:  # type: ignore[call-arg] # who has the attribute has the field
            form = FORMS[_name(alike)]
            chance = step.weights[0] / sum(step.weights)
            return [f"{indent}{_line(_name(alike), form.write(alike) | {'per_channel': chance})}"]
    if isinstance(step, OneOf) and not step.weights:
        inner = [line for child in step.steps for line in _lines(child, depth + 1)]
        return [f"{indent}{_line(CHOICE, {'p': step.p})}", *inner, f"{indent}{END}"]
    if isinstance(step, Container) and not isinstance(step, Compose):
        raise BadValueError(f"{step!r}: ECVL chooses evenly.")
    name = None if isinstance(step, Compose) else _name(step)
    if step.p < 1 and (name is None or "p" not in FORMS[name].arguments or FORMS[name].arguments is not CHANCE):
        inner = _lines(replace(step, p=1.0), depth + 1)
        return [f"{indent}{_line(CHOICE, {'p': step.p})}", *inner, f"{indent}{END}"]
    assert name is not None
    return [f"{indent}{_line(name, FORMS[name].write(step))}"]


def _line(name: str, values: Values) -> str:
    return " ".join([name, *(f"{n}={_spell(name, n, v)}" for n, v in values.items())])


def _spell(name: str, argument: str, value: Any) -> str:
    if isinstance(value, str):
        # ECVL's bending augmentations know this word with a line, its crop without.
        bends = argument == "border_type" and value == "reflect101" and name != "AugRandomCrop"
        return f'"{"reflect_101" if bends else value}"'
    if isinstance(value, list):
        return f"[{','.join(map(_digits, value))}]"
    return f"({','.join(map(_digits, value))})" if isinstance(value, tuple) else _digits(value)


def _digits(value: float) -> str:
    return repr(round(float(value), 12)).removesuffix(".0")
