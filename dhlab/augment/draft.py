"""A pass while its steps write into it: matrices, displacements and colour parameters that become one `Plan`."""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dhlab.kernels.density import StainMap
from dhlab.kernels.plan import Plan

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from dhlab.augment.steps import Size

__all__ = ["Draft"]

IDENTITY = np.eye(3)
COLOURLESS = np.eye(3, 4)


class Draft:
    """One pass over a batch while it is drawn.

    Parameters
    ----------
    batch
        Number of samples.
    size
        Height and width of the images that go in.
    images
        ``(B, H, W, 3)`` uint8 that go in, for steps that look at them; None otherwise.
    """

    def __init__(self, batch: int, size: Size, images: NDArray[np.uint8] | None = None) -> None:
        self.batch, self.size, self.images = batch, size, images
        # Output to source, in the order of the steps: matrices, and displacements at positions.
        self.maps: list[NDArray[np.float64] | Callable[[NDArray[np.float64]], NDArray[np.float64]]] = []
        self.nodes = (2, 2)
        # Positions of the nodes in the result, ``(B, 2, N)``, once all steps are there.
        self.grid: NDArray[np.float64] | None = None
        self.reduction = 1.0
        self.parts: dict[str, NDArray[Any]] = {}
        self.stain: dict[str, NDArray[np.float64]] | None = None
        # Further numbers of the step that is writing: how many per sample in, ``(B, n)`` between 0 and 1 out.
        self.noise: Callable[[int], NDArray[np.float32]] | None = None

    def pick(self, chosen: NDArray[np.bool_] | None, value: Any, other: Any) -> NDArray[np.float64]:
        """Return ``value`` for the chosen samples, ``other`` for the rest, each ``(B, …)``, ``(1, …)`` or a number."""
        if chosen is None:
            return np.asarray(value, np.float64)
        value = np.asarray(value, np.float64)
        return np.where(chosen.reshape(-1, *(1,) * (max(value.ndim, np.ndim(other)) - 1)), value, other)

    def move(self, matrix: NDArray[np.float64], chosen: NDArray[np.bool_] | None) -> None:
        """Add a step of geometry: ``(B, 3, 3)`` or ``(3, 3)``, its output ``(y, x, 1)`` to its source."""
        self.maps.append(matrix if chosen is None else self.pick(chosen, matrix.reshape(-1, 3, 3), IDENTITY))

    def displace(
        self,
        shift: Callable[[NDArray[np.float64]], NDArray[np.float64]],
        chosen: NDArray[np.bool_] | None,
        nodes: Size,
        *,
        nodal: NDArray[np.floating[Any]] | None = None,
    ) -> None:
        """Add a step that moves every position by its own ``(dy, dx)``.

        Parameters
        ----------
        shift
            Takes positions ``(B, 2, N)`` in pixels and returns their displacements, ``(B, 2, N)``.
        chosen
            ``(B,)`` samples that get it; None is all.
        nodes
            Down and across: how many nodes show it well enough.
        nodal
            The displacements at these nodes, ``(B, 2, *nodes)``, where they are known.
        """

        def spared(positions: NDArray[np.float64]) -> NDArray[np.float64]:
            on_nodes = nodal is not None and positions is self.grid and nodes == self.nodes
            moved = nodal.reshape(self.batch, 2, -1) if on_nodes and nodal is not None else shift(positions)
            return self.pick(chosen, moved, 0.0)

        self.maps.append(spared)
        self.nodes = (max(self.nodes[0], nodes[0]), max(self.nodes[1], nodes[1]))

    def recolour(self, matrix: NDArray[np.float64], chosen: NDArray[np.bool_] | None) -> None:
        """Add a step of colour, ``(B, 3, 4)``: matrix and offset on light, after those before it."""
        matrix = self.pick(chosen, matrix, COLOURLESS)
        before = self.parts.get("colour")
        if before is None:
            self.parts["colour"] = matrix
            return
        turned = matrix[..., :3] @ before
        turned[..., 3] += matrix[..., 3]
        self.parts["colour"] = turned

    def look_up(self, table: NDArray[np.float64], chosen: NDArray[np.bool_] | None) -> None:
        """Add a table of levels, ``(B, 3, 256)`` or what broadcasts to it, after those before it."""
        levels = np.arange(256.0)
        table = table[None, None] if table.ndim == 1 else table
        table = np.broadcast_to(self.pick(chosen, table, levels), (self.batch, 3, 256)).clip(0, 255)
        before = self.parts.get("table")
        if before is not None:
            table = np.take_along_axis(table, np.rint(before).astype(np.int64), -1)
        self.parts["table"] = table

    def restain(
        self,
        *,
        unmix: NDArray[np.float64],
        mix: NDArray[np.float64],
        floor: NDArray[np.float64],
        chosen: NDArray[np.bool_] | None,
    ) -> None:
        """Set the change of stain of the chosen samples.

        Parameters
        ----------
        unmix, mix
            ``(B, 3, 4)`` or ``(3, 4)``, as in `StainMap`.
        floor
            ``(B, 3)`` or ``(3,)``.
        chosen
            ``(B,)`` samples that get it; None is all.
        """
        given = {"unmix": unmix, "mix": mix, "floor": floor}
        if self.stain is None:
            # Light to its logarithm and back leaves a spared sample as it is.
            self.stain = {"unmix": COLOURLESS[None], "mix": COLOURLESS[None], "floor": np.full((1, 3), -np.inf)}
        for name, value in given.items():
            there = self.stain[name]
            self.stain[name] = self.pick(chosen, value if value.ndim == there.ndim else value[None], there)

    def set(self, name: str, values: Any, chosen: NDArray[np.bool_] | None, neutral: float = 0.0) -> None:
        """Set a parameter of the chosen samples.

        Parameters
        ----------
        name
            As in `Plan`.
        values
            ``(B, …)``.
        chosen
            ``(B,)`` samples; None is all.
        neutral
            What spares a sample.
        """
        self.parts[name] = self.pick(chosen, values, self.parts.get(name, neutral))

    def matrix(self) -> NDArray[np.float64]:
        """Return the product of all matrices, ``(B, 3, 3)``, output to source."""
        matrices = [m for m in self.maps if not callable(m)]
        product = reduce(np.matmul, matrices) if matrices else IDENTITY
        return product if product.ndim == 3 else np.broadcast_to(product, (self.batch, 3, 3))

    def finish(self, keys: NDArray[np.int64], demands: dict[str, Any]) -> Plan:
        """Return the plan.

        Parameters
        ----------
        keys
            ``(B,)`` int64: seeds of the noise.
        demands
            What the steps agreed on: interpolation, border, fill and the like, by the names of `Plan`.
        """
        matrix = self.matrix()
        if "salt" in self.parts:
            # The kernel strews pepper over salt: what shows of either is what the steps drew.
            bare = np.maximum(1 - self.parts["pepper"], 1e-6)
            self.parts["salt"] = np.minimum(self.parts["salt"] / bare, 1)
        fields: dict[str, Any] = {name: self._tensor(name, value) for name, value in self.parts.items()}
        if any(map(callable, self.maps)):
            fields["field"] = self._tensor("field", self._field(matrix))
        if self.stain is not None:
            fields["stain"] = self._stain()
        fill = demands.get("fill")
        if fill is not None and any(fill):
            fields["fill"] = self._tensor("fill", np.array([fill]))
        named = {n: v for n, v in demands.items() if v is not None and n != "fill"}
        return Plan(
            size=self.size,
            matrix=self._tensor("matrix", matrix),
            keys=torch.from_numpy(keys),
            supersample=max(1, min(8, round(self.reduction))),
            **({"border": "replicate"} | named),
            **fields,
        )

    def _stain(self) -> StainMap:
        assert self.stain is not None
        tensors = {name: self._tensor(name, value) for name, value in self.stain.items()}
        return StainMap(tensors["unmix"], tensors["mix"], tensors["floor"])

    def _tensor(self, name: str, value: NDArray[Any]) -> torch.Tensor:
        """Return a tensor of the plan from ``(B, …)`` or ``(1, …)``."""
        filled = np.empty((self.batch, *value.shape[1:]), np.int32 if name == "cutouts" else np.float32)
        filled[...] = value
        return torch.from_numpy(filled)

    def _field(self, matrix: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return what the way back through all steps adds to the matrix at evenly spread nodes, ``(B, 2, gh, gw)``."""
        down, across = (np.linspace(0, n - 1, g) for n, g in zip(self.size, self.nodes, strict=True))
        grid = np.stack(np.meshgrid(down, across, indexing="ij")).reshape(1, 2, -1)
        positions = self.grid = np.broadcast_to(grid, (self.batch, 2, grid.shape[-1]))
        straight = _transform(matrix, positions)
        for step in reversed(self.maps):
            positions = positions + step(positions) if callable(step) else _transform(step, positions)
        return (positions - straight).reshape(self.batch, 2, *self.nodes)


def _transform(matrix: NDArray[np.float64], positions: NDArray[np.float64]) -> NDArray[np.float64]:
    moved = matrix[..., :2] @ positions + matrix[..., 2:]
    found: NDArray[np.float64] = moved[..., :2, :] / moved[..., 2:, :]
    return found
