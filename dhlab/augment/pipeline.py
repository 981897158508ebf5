"""`Compose`: steps that are drawn for a batch as plans, and carried out in as few passes as keep their order."""

from __future__ import annotations

import html
from functools import cached_property
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch

from dhlab.augment.containers import Container, Sequence
from dhlab.augment.draft import Draft
from dhlab.augment.schedule import Numbers, Schedule, schedule
from dhlab.augment.steps import Transform, from_dict, to_dict
from dhlab.errors import BadShapeError, BadValueError
from dhlab.kernels.augment import augment
from dhlab.kernels.philox import sample_keys

if TYPE_CHECKING:
    from collections.abc import Iterator
    from collections.abc import Sequence as Ordered

    from numpy.typing import NDArray
    from PIL.Image import Image
    from torch import Tensor

    from dhlab.augment.steps import Size
    from dhlab.kernels.plan import Plan

__all__ = ["Compose", "from_dict"]

# Apart by an odd constant, so that the noise of one pass tells nothing of another's.
APART = np.int64(-0x61C8864680B583EB)


class Compose(Sequence):
    """A pipeline: steps, one after the other, for a batch of RGB pictures and their masks.

    What a sample gets depends on seed, epoch and its index alone: the same for any split into batches, any number of
    workers, on CPU and GPU. Steps of geometry become one map and are sampled once, those of colour one matrix; where a
    step cannot act after an earlier one within a pass of `dhlab.kernels.augment`, a new pass begins. So geometry before
    colour before noise before blur costs one pass.

    Parameters
    ----------
    steps
        Transforms of `dhlab.augment`, also `OneOf` and further `Compose`.
    p
        Probability that a sample gets any of them.

    Examples
    --------
    >>> from dhlab.augment import Compose, Mirror, Rotate, StainJitter
    >>> pipeline = Compose([Mirror(), Rotate((-15, 15)), StainJitter()])
    >>> pipeline.passes
    1
    """

    @property
    def passes(self) -> int:
        """How many passes over memory the steps take."""
        return self._schedule.passes

    @property
    def needs_images(self) -> bool:
        """Whether a step looks at the pictures, so that drawing costs a look too."""
        return self._schedule.needs_images

    @cached_property
    def _schedule(self) -> Schedule:
        return schedule(self)

    def __post_init__(self) -> None:
        super().__post_init__()
        schedule(self)  # what cannot be carried out is said when it is written, not when it is used

    def __iter__(self) -> Iterator[Transform]:
        return iter(self.steps)

    def size_of(self, size: Size) -> Size:
        """Return height and width of the result for pictures of `size`.

        Parameters
        ----------
        size
            Height and width.

        Raises
        ------
        BadShapeError
            If pictures of this size cannot go through.
        """
        return self._schedule.sizes(self, size)[1][-1]

    def draw(
        self,
        images: Tensor | NDArray[np.uint8],
        *,
        seed: int = 0,
        epoch: int = 0,
        indices: Ordered[int] | NDArray[np.int64] | None = None,
        channel_axis: int | None = None,
    ) -> list[Plan]:
        """Draw what happens to each sample.

        Parameters
        ----------
        images
            ``(B, H, W, 3)`` or ``(B, 3, H, W)`` uint8; their pixels count only for steps that look at them.
        seed, epoch
            With the index of a sample they decide every draw.
        indices
            ``(B,)`` indices of the samples in their dataset; None is 0, 1, 2, …
        channel_axis
            Where the channels are: -1, 1, or None for the one that has three.

        Returns
        -------
        list of Plan
            One per pass, on the device of the images.

        Raises
        ------
        BadShapeError
            If images and indices do not fit.
        """
        return [plan for plan, _, _ in self._run(_as_batch(images, channel_axis), None, seed, epoch, indices)]

    @overload
    def __call__(
        self,
        images: Tensor,
        masks: None = None,
        *,
        seed: int = 0,
        epoch: int = 0,
        indices: Ordered[int] | NDArray[np.int64] | None = None,
        channel_axis: int | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor: ...
    @overload
    def __call__(
        self,
        images: Tensor,
        masks: Tensor,
        *,
        seed: int = 0,
        epoch: int = 0,
        indices: Ordered[int] | NDArray[np.int64] | None = None,
        channel_axis: int | None = None,
        dtype: torch.dtype | None = None,
    ) -> tuple[Tensor, Tensor]: ...

    def __call__(
        self,
        images: Tensor,
        masks: Tensor | None = None,
        *,
        seed: int = 0,
        epoch: int = 0,
        indices: Ordered[int] | NDArray[np.int64] | None = None,
        channel_axis: int | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Draw and carry out.

        Parameters
        ----------
        images
            ``(B, H, W, 3)`` or ``(B, 3, H, W)`` uint8.
        masks
            ``(B, H, W)`` or ``(B, K, H, W)``, any integer type; they move with their picture and are never blended.
        seed, epoch
            With the index of a sample they decide every draw.
        indices
            ``(B,)`` indices of the samples in their dataset; None is 0, 1, 2, …
        channel_axis
            Where the channels are: -1, 1, or None for the one that has three.
        dtype
            Float type of the result instead of float32, after `ToFloat32`, `DivBy255` or `Normalize`.

        Returns
        -------
        Tensor or tuple of Tensor
            uint8 with the axes of `images`; or ``(B, 3, H, W)`` float where a step of output makes it so. With
            `masks` also those.

        Raises
        ------
        BadShapeError
            If images, masks and indices do not fit.
        BadValueError
            If a type is asked for that the steps do not make.
        """
        channels = _channel_axis(images, channel_axis)
        units = self._schedule.units
        if dtype is not None and units is None:
            raise BadValueError(f"dtype is {dtype}, but no step makes floats; add ToFloat32, DivBy255 or Normalize.")
        final = torch.uint8 if units is None else dtype or torch.float32
        *_, (_, result, moved) = self._run(_as_batch(images, channels), masks, seed, epoch, indices, final)
        if units is None and channels != 1:
            result = result.permute(0, 2, 3, 1)
        if moved is None:
            return result
        return result, moved.clone() if moved is masks else moved

    def preview(self, image: NDArray[np.uint8], count: int = 9, *, seed: int = 0) -> Image:
        """Return a sheet of random variants of a picture, which a notebook shows.

        Parameters
        ----------
        image
            ``(H, W, 3)`` uint8.
        count
            Number of variants.
        seed
            Decides them.
        """
        from PIL import Image

        plain = self.without_output()
        batch = torch.from_numpy(np.ascontiguousarray(image)).expand(count, *image.shape)
        variants = plain(batch, seed=seed).numpy()
        columns = int(np.ceil(np.sqrt(count)))
        height, width = variants.shape[1:3]
        sheet = np.full((-(-count // columns) * (height + 2) - 2, columns * (width + 2) - 2, 3), 255, np.uint8)
        for position, variant in enumerate(variants):
            y, x = (position // columns) * (height + 2), (position % columns) * (width + 2)
            sheet[y : y + height, x : x + width] = variant
        return Image.fromarray(sheet)

    def without_output(self) -> Compose:
        """Return the pipeline that ends in grey levels, where the model normalises by itself."""

        def kept(step: Transform) -> list[Transform]:
            from dataclasses import replace

            from dhlab.augment.output import Output

            if isinstance(step, Container):
                return [replace(step, steps=tuple(k for child in step.steps for k in kept(child)))]
            return [] if isinstance(step, Output) else [step]

        found = kept(self)[0]
        assert isinstance(found, Compose)
        return found

    @property
    def makes_floats(self) -> bool:
        """Whether the result is float numbers instead of grey levels."""
        return self._schedule.units is not None

    def to_dict(self) -> dict[str, Any]:
        """Return the pipeline as JSON-compatible values, which `from_dict` reads."""
        return to_dict(self)

    def _run(
        self,
        images: Tensor,
        masks: Tensor | None,
        seed: int,
        epoch: int,
        indices: Ordered[int] | NDArray[np.int64] | None,
        final: torch.dtype | None = None,
    ) -> Iterator[tuple[Plan, Tensor, Tensor | None]]:
        """Yield the plan of each pass, and what it makes of ``(B, H, W, 3)`` images and their masks.

        Without a type of the result, a pass is carried out only if a later one looks at the pictures.
        """
        batch = len(images)
        numbers = np.arange(batch) if indices is None else np.asarray(indices, np.int64).reshape(-1)
        if len(numbers) != batch:
            raise BadShapeError(f"{batch} images and {len(numbers)} indices; expected an index for each.")
        made = self._schedule
        before, after = made.sizes(self, (images.shape[1], images.shape[2]))
        keys = sample_keys(seed, epoch=epoch, indices=numbers)
        drawn = Numbers(made, keys)
        turn_keys = np.arange(made.passes, dtype=np.int64) * APART
        for turn in range(made.passes):
            placed = [p for p in made.placed if p.turn == turn]
            looking = any(p.step.needs_images for p in placed)
            draft = Draft(batch, (images.shape[1], images.shape[2]), images.cpu().numpy() if looking else None)
            for p in placed:
                draft.size = before[p.number]
                draft.noise = lambda size, number=p.number: drawn.more(number, size)
                p.step._write(draft, drawn.chosen(p.gate), drawn.of(p.number))
            draft.size = after[turn]
            plan = draft.finish(keys + turn_keys[turn], made.demands[turn])
            plan = plan if images.device.type == "cpu" else plan.to(images.device)
            last = turn == made.passes - 1
            if final is None and (last or not any(p.step.needs_images for p in made.placed if p.turn > turn)):
                yield plan, images, masks
                continue
            options: dict[str, Any] = {"dtype": torch.uint8, "memory_format": torch.channels_last}
            if last and final is not None and final != torch.uint8:
                assert made.units is not None
                mean, std = made.units.mean_std
                options = {"dtype": final, "mean": mean, "std": std}
            if masks is None or not draft.maps:
                result = augment(images, plan, **options)
            else:
                result, masks = augment(images, plan, masks, **options)
            images = result.permute(0, 2, 3, 1)
            yield plan, result, masks

    def _repr_html_(self) -> str:
        turns = {placed.number: placed.turn for placed in self._schedule.placed}
        rows: list[str] = []
        numbers = iter(range(len(self._schedule.draws)))

        def describe(step: Transform, depth: int) -> None:
            number = next(numbers)
            given = {n: v for n, v in step._changed().items() if n not in ("steps", "p")}
            said = html.escape(", ".join(f"{n} {v}" for n, v in given.items()))
            turn = turns.get(number)
            cells = (
                f"<td style='padding-left:{1 + 2 * depth}em'>{type(step).__name__}</td>",
                f"<td>{said}</td><td>{step.p:g}</td><td>{'' if turn is None else turn + 1}</td>",
            )
            rows.append(f"<tr>{''.join(cells)}</tr>")
            if isinstance(step, Container):
                for child in step.steps:
                    describe(child, depth + 1)

        describe(self, 0)
        head = "<tr><th>step</th><th>drawn from</th><th>p</th><th>pass</th></tr>"
        return f"<table>{head}{''.join(rows)}</table>"


def _channel_axis(images: Tensor | NDArray[np.uint8], channel_axis: int | None) -> int:
    shape = tuple(images.shape)
    axes = [axis for axis in (-1, 1) if len(shape) == 4 and shape[axis] == 3]
    if channel_axis is None and axes:
        return axes[0]
    if len(shape) != 4 or channel_axis not in (1, -1, 3) or shape[channel_axis] != 3:
        raise BadShapeError(f"images {shape}; expected (B, H, W, 3) or (B, 3, H, W).")
    return -1 if channel_axis == 3 else channel_axis


def _as_batch(images: Tensor | NDArray[np.uint8], channel_axis: int | None) -> Tensor:
    """Return ``(B, H, W, 3)``, a view."""
    tensor = torch.as_tensor(images)
    if tensor.dtype != torch.uint8:
        raise BadShapeError(f"images are {tensor.dtype}; expected uint8.")
    return tensor.movedim(_channel_axis(tensor, channel_axis), -1)
