"""Which step belongs to which pass, and when a sample gets it: found once per pipeline, whatever is drawn."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate, count
from typing import TYPE_CHECKING, Any

import numpy as np

from dhlab.augment.containers import Container, OneOf, size_after
from dhlab.augment.geometry import Geometric
from dhlab.augment.output import Output, Units
from dhlab.augment.steps import Stage
from dhlab.errors import BadShapeError, BadValueError
from dhlab.kernels.philox import Stream, philox, uniform

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dhlab.augment.steps import Size, Transform

__all__ = ["Numbers", "Placed", "Schedule", "schedule"]

# Several steps of these stages become one.
FOLDED = {Stage.GEOMETRY, Stage.TABLE, Stage.COLOUR, Stage.GAMMA, Stage.SALT, Stage.CUTOUTS}


@dataclass(frozen=True)
class Placed:
    """A step in its pass.

    Parameters
    ----------
    step
        The step.
    number
        Of the step in the pipeline, which its random numbers belong to.
    gate
        When a sample gets it; None is always.
    turn
        Number of its pass.
    """

    step: Transform
    number: int
    gate: Gate | None
    turn: int


@dataclass(frozen=True)
class Gate:
    """A condition: the first random number of a step lies in a range, and another condition holds.

    Parameters
    ----------
    number
        Of the step.
    low, high
        The range.
    before
        The other condition; None is none.
    """

    number: int
    low: float
    high: float
    before: Gate | None


@dataclass(frozen=True)
class Place:
    """How far a pass is filled: its number, its stages so far, and whether pixels were sampled anew in it."""

    turn: int = 0
    used: frozenset[Stage] = frozenset()
    moved: bool = False


@dataclass
class Schedule:
    """What is done in which pass.

    Parameters
    ----------
    placed
        The steps.
    demands
        Of each pass: interpolation, border and what else its steps have in common.
    draws
        Random numbers that each step needs, by its number.
    units
        Of the result; None is grey levels.
    known_sizes
        What `sizes` has found, by size.
    """

    placed: list[Placed] = field(default_factory=list)
    demands: list[dict[str, Any]] = field(default_factory=lambda: [{}])
    draws: list[int] = field(default_factory=list)
    units: Units | None = None
    known_sizes: dict[Size, tuple[dict[int, Size], list[Size]]] = field(default_factory=dict)

    @property
    def passes(self) -> int:
        """How many passes over memory."""
        return len(self.demands)

    @cached_property
    def blocks(self) -> tuple[list[int], NDArray[np.int64], NDArray[np.int64]]:
        """Where the numbers of each step begin, and the counters that draw them: blocks of four, each of its step."""
        counts = [(1 + needed + 3) // 4 for needed in self.draws]
        starts = [4 * n for n in accumulate(counts, initial=0)]
        block = np.concatenate([np.arange(n, dtype=np.int64) for n in counts])
        return starts, block, np.repeat(np.arange(len(counts), dtype=np.int64), counts)

    @property
    def needs_images(self) -> bool:
        """Whether a step looks at the pictures."""
        return any(placed.step.needs_images for placed in self.placed)

    def sizes(self, pipeline: Container, size: Size) -> tuple[dict[int, Size], list[Size]]:
        """Return the size before each step, by its number, and the one after each pass.

        Parameters
        ----------
        pipeline
            All steps.
        size
            Height and width of what comes in.

        Raises
        ------
        BadShapeError
            If a size depends on chance, pictures are too small, or samples would change their size in several passes.
        """
        if size in self.known_sizes:
            return self.known_sizes[size]
        turns = {placed.number: placed.turn for placed in self.placed}
        before: dict[int, Size] = {}
        after: list[Size] = [size] * self.passes
        numbers = count()

        def walk(step: Transform, size: Size) -> tuple[Size, set[int]]:
            number = next(numbers)
            if isinstance(step, OneOf):
                ends = [walk(child, size) for child in step.steps]
                changing = {turn for _, found in ends for turn in found}
                if len(changing) > 1:
                    raise BadShapeError(
                        f"steps of {step!r} change the size and differ in interpolation, border or fill; make them "
                        "alike."
                    )
                return size_after(step, size), changing
            if isinstance(step, Container):
                changed, new = set(), size
                for child in step.steps:
                    new, found = walk(child, new)
                    changed |= found
                return size_after(step, size), changed
            before[number] = size
            new = size_after(step, size)
            if number not in turns or new == size:
                return new, set()
            after[turns[number] :] = [new] * (self.passes - turns[number])
            return new, {turns[number]}

        walk(pipeline, size)
        return self.known_sizes.setdefault(size, (before, after))


def schedule(pipeline: Container) -> Schedule:
    """Place the steps of a pipeline: as many in a pass as keep their order.

    Parameters
    ----------
    pipeline
        All steps.

    Raises
    ------
    BadValueError
        If a step of colour follows one of output, or a step of output is left to chance.
    """
    made = Schedule()
    _place(pipeline, Place(), None, made)
    return made


def _place(step: Transform, place: Place, gate: Gate | None, made: Schedule) -> Place:
    number = len(made.draws)
    made.draws.append(0 if isinstance(step, Container) else step.draws)
    if isinstance(step, OneOf):
        ends = []
        for child, (low, high) in zip(step.steps, step.shares, strict=True):
            ends.append(_place(child, place, Gate(number, low, high, gate), made))
        last = max(end.turn for end in ends)
        ends = [end for end in ends if end.turn == last]
        return Place(last, frozenset().union(*(end.used for end in ends)), any(end.moved for end in ends))
    if step.p < 1:
        gate = Gate(number, 0.0, step.p, gate)
    if isinstance(step, Container):
        for child in step.steps:
            place = _place(child, place, gate, made)
        return place
    if isinstance(step, Output):
        if gate is not None:
            raise BadValueError(f"{step!r} is left to chance; a batch has one type, so it belongs to all samples.")
        made.units = step._units(made.units)
        return place
    if made.units is not None:
        step = _after_output(step, made.units)
    while not _fits(step, place, made.demands[place.turn]):
        place = Place(place.turn + 1)
        if place.turn == made.passes:
            made.demands.append({})
    made.demands[place.turn] |= {n: v for n, v in step._demands.items() if v is not None}
    made.placed.append(Placed(step, number, gate, place.turn))
    sampled = step.stage == Stage.GEOMETRY and not step.exact
    return Place(place.turn, place.used | {step.stage}, place.moved or sampled)


def _fits(step: Transform, place: Place, demands: dict[str, Any]) -> bool:
    """Whether a step can join a pass and still act after all that is in it."""
    if any(v is not None and demands.get(n, v) != v for n, v in step._demands.items()):
        return False
    used = place.used
    if step.exact:
        # Swapping pixels and changing each by itself may change places; boxes and cells have a place.
        return used.isdisjoint((Stage.DROPOUT, Stage.CUTOUTS))
    if step.needs_images:
        # What the pictures show is known if pixels were only swapped, and their mean after a change of colour too.
        known = {Stage.GEOMETRY, *((Stage.COLOUR,) if step.stage == Stage.COLOUR else ())}
        if place.moved or not used <= known:
            return False
    last = max(used, default=Stage.GEOMETRY)
    return step.stage > last or (step.stage == last and (step.stage in FOLDED or step.stage not in used))


def _after_output(step: Transform, units: Units) -> Transform:
    """Return a step of geometry whose fill, in the units of the result, is told in grey levels."""
    if step.stage != Stage.GEOMETRY:
        raise BadValueError(
            f"{type(step).__name__} comes after ToFloat32, DivBy255 or Normalize; expected it before: colour is "
            "changed on grey levels."
        )
    if isinstance(step, Geometric) and step.border == "constant":
        assert isinstance(step.fill, tuple)
        levels = [units.level(v)[channel] for channel, v in enumerate(step.fill)]
        return replace(step, fill=(levels[0], levels[1], levels[2]))
    return step


class Numbers:
    """The random numbers of a batch: each depends on the sample's key and the step's number alone.

    Parameters
    ----------
    made
        The schedule.
    keys
        ``(B,)`` int64, one per sample.
    """

    def __init__(self, made: Schedule, keys: NDArray[np.int64]) -> None:
        self.keys = keys[:, None]
        self.starts, block, step = made.blocks
        words = philox((block, step, int(Stream.DRAW), 0), self.keys)
        self.drawn: NDArray[np.float64] = uniform(np.stack(words, -1).reshape(len(keys), 4 * len(step)))
        self.draws = made.draws
        self.gates: dict[Gate, NDArray[np.bool_]] = {}

    def of(self, number: int) -> NDArray[np.float64]:
        """Return ``(B, draws)`` of the step of this number."""
        start = self.starts[number] + 1
        return self.drawn[:, start : start + self.draws[number]]

    def chosen(self, gate: Gate | None) -> NDArray[np.bool_] | None:
        """Return ``(B,)``: which samples pass a gate; None is all."""
        if gate is None:
            return None
        if gate not in self.gates:
            number = self.drawn[:, self.starts[gate.number]]
            found = (number >= gate.low) & (number < gate.high)
            before = self.chosen(gate.before)
            self.gates[gate] = found if before is None else found & before
        return self.gates[gate]

    def more(self, number: int, size: int) -> NDArray[np.float32]:
        """Return ``(B, size)`` further numbers of a step, which are many: NumPy draws them in C, a sample at a time."""
        raw = np.empty((len(self.keys), size), np.uint64)
        for row, key in zip(raw, self.keys[:, 0].view(np.uint64), strict=True):
            row[:] = np.random.Philox(key=np.array([key, number], np.uint64)).random_raw(size)
        return (raw >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)
