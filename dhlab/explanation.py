"""`explain`: on which pixels a model's answer rests, as a heat map that lies on the scan."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from dhlab.errors import BadValueError, DHLabWarning, MissingDependencyError, UnknownNameError, suggest
from dhlab.grid import TileGrid
from dhlab.inference import arrange_axes, lend_model, spacing_for
from dhlab.kernels.blend import accumulate_windows, gaussian_weights
from dhlab.networks import OnnxNet
from dhlab.progress import progress_bar
from dhlab.scan import Scan
from dhlab.tiles import Tiles
from dhlab.timeline import stage

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

    from numpy.typing import ArrayLike, NDArray
    from torch import Tensor

    from dhlab.cards import ModelCard
    from dhlab.models import Model

__all__ = ["attribute", "explain", "find_layer"]

METHODS = ("grad-cam", "integrated-gradients")
# Largest canvas, in bytes, on which windows are blended.
MEMORY_LIMIT = 1 << 29
# Pixels that pass through the network at once.
BATCH_PIXELS = 1 << 18
# Integrated gradients have a few pixels far above all others: this quantile is shown as 1.
BRIGHTEST = 0.999
LINEAR = ("linear", "bilinear", "trilinear")


def explain(
    model: Model,
    scan: Scan | ArrayLike,
    *,
    target: str | None = None,
    method: str = "grad-cam",
    layer: str | None = None,
    baseline: float | None = None,
    steps: int = 50,
    overlap: float = 0.5,
    within: Scan | None = None,
    reduction: int | None = None,
    batch_size: int | None = None,
    device: str | None = None,
    progress: bool = True,
) -> Scan:
    """Show on which pixels a model's answer rests.

    A scan larger than the model's tile is explained window by window, and overlapping windows are blended with
    Gaussian weights. One scale holds for the whole map, so that a window without evidence stays dark. A map says what
    the model looked at, not whether that is right.

    Parameters
    ----------
    model
        Any model with gradients: classification, multilabel, regression, or segmentation, of which the mean over the
        window counts.
    scan
        The scan, or an array with the card's axes and type, such as one window.
    target
        Class (of a regression the number) to explain; None is the one with the largest mean score.
    method
        ``"grad-cam"``: a coarse map of what speaks for the target. ``"integrated-gradients"``: one per pixel of what
        speaks for and against it.
    layer
        Of Grad-CAM, the layer's name in ``model.net.named_modules()``; None is what `find_layer` finds.
    baseline
        Of integrated gradients, the stored value of a pixel that says nothing; None is the card's mean colour.
    steps
        Of integrated gradients, points between baseline and window.
    overlap
        Share of a window that its neighbour also sees, from 0 up to but excluding 1.
    within
        Mask scan; only windows that see it are explained, the rest of the map is 0.
    reduction
        Window pixels per map pixel; None is 1, or what keeps the map of a large scan in memory. 4 or 8 average away
        the checkered texture that strided convolutions leave in integrated gradients.
    batch_size
        Windows at once; None chooses by their size.
    device
        ``"cpu"``, ``"cuda"`` …; None is a GPU if there is one.
    progress
        Show a progress bar.

    Returns
    -------
    Scan
        Heat map, ``c`` and the window axes, float32, `scan` as its parent: of Grad-CAM one channel, 0 to 1; of
        integrated gradients two, for and against, 1 at the 99.9 % quantile. ``meta["scale"]`` is the attribution
        that 1 stands for, in logits (of a regression in its unit).

    Raises
    ------
    MissingDependencyError
        If captum is not installed.
    UnknownNameError
        If there is no such class or layer.
    BadShapeError
        If axes, channels or type of the scan do not fit the card.
    BadValueError
        If the model has no gradients or no suitable layer, a number is out of range, or the map is too large.

    References
    ----------
    Selvaraju et al., "Grad-CAM: visual explanations from deep networks via gradient-based localization", ICCV 2017;
    Sundararajan, Taly and Yan, "Axiomatic attribution for deep networks", ICML 2017.
    """
    card = model.card
    _check_model(model)
    _require_captum()
    if not isinstance(scan, Scan):
        scan = Scan.from_array(scan, card.axes, spacing=card.spacing, unit=card.unit, name="window")
    if batch_size is not None and batch_size < 1:
        raise BadValueError(f"batch_size {batch_size}; expected at least 1.")
    grid = TileGrid.cover(scan, card.tile, spacing=spacing_for(card, scan), overlap=overlap)
    canvas = _Canvas.over(grid, reduction)
    tiles = Tiles(scan, canvas.grid if within is None else canvas.grid.within(within))
    if not len(tiles):
        warnings.warn(f"no window of {scan.name!r} sees the mask: the map is 0.", DHLabWarning, stacklevel=2)
    size = batch_size or max(1, BATCH_PIXELS // math.prod(card.tile))
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    with stage("validated", verb="explain", model=card.name, scan=scan.name), lend_model(model, where):
        index = _find_target(model, tiles, target, size)
        question = _Question.ask(model, index, method=method, layer=layer, baseline=baseline, steps=steps)
        with progress_bar(len(tiles), "explain", shown=progress, unit="tile") as bar:
            for positions, windows in _batches(tiles, card, size):
                canvas.add(question.answer(model.prepare(windows.to(where))), positions, tiles.grid)
                bar.update(len(positions))
    raw = canvas.finish()
    signed = question.method != "grad-cam"
    strength = np.abs(raw)
    scale = float(np.quantile(strength[strength > 0], BRIGHTEST if signed else 1.0)) if strength.any() else 1.0
    name = card.classes[index]
    parts = {f"for {name}": raw.clip(0), f"against {name}": (-raw).clip(0)} if signed else {name: raw}
    heat = Scan.from_array(
        np.stack(list(parts.values())) / np.float32(scale),
        "c" + scan.window_axes,
        spacing=tuple(s * canvas.reduction for s in grid.spacing),
        unit=scan.unit,
        name=f"{scan.name} {card.name} {method}",
        kind="heatmap",
        channels=tuple(parts),
    )
    about = {"model": card.name, "method": method, "target": name, "layer": question.layer, "scale": scale}
    return heat.replace(parent=scan.as_parent(), meta=dict(heat.meta) | about)


def attribute(
    model: Model,
    windows: ArrayLike,
    *,
    target: str,
    method: str = "grad-cam",
    layer: str | None = None,
    baseline: float | None = None,
    steps: int = 50,
) -> NDArray[np.float32]:
    """Return the attributions behind `explain`, window by window and unscaled.

    Parameters
    ----------
    model
        Any model with gradients.
    windows
        ``(B, *window)`` as stored, in the card's axes and type.
    target
        Class or number to explain.
    method
        ``"grad-cam"`` or ``"integrated-gradients"``. The latter add up to the difference of the target's logit (of a
        regression its number) between window and baseline.
    layer
        Of Grad-CAM, the layer's name; None is what `find_layer` finds.
    baseline
        Of integrated gradients, the stored value of a pixel that says nothing; None is the card's mean colour.
    steps
        Of integrated gradients, points between baseline and window.

    Returns
    -------
    ndarray
        ``(B, *space)`` float32; channels are summed.

    Raises
    ------
    MissingDependencyError
        If captum is not installed.
    UnknownNameError
        If there is no such class or layer.
    BadShapeError
        If the windows do not fit the card.
    BadValueError
        If the model has no gradients or no suitable layer, or a number is out of range.
    """
    _check_model(model)
    index = _index_of(model.card, target)
    home = next((p.device for p in model.parameters()), torch.device("cpu"))
    with lend_model(model, home):
        question = _Question.ask(model, index, method=method, layer=layer, baseline=baseline, steps=steps)
        x = model.prepare(torch.from_numpy(np.ascontiguousarray(windows)).to(home))
        answer: NDArray[np.float32] = question.answer(x).cpu().numpy()
    return answer


def find_layer(model: Model) -> str:
    """Return the name of the layer that Grad-CAM looks at: the last of those with the coarsest picture.

    In a classifier that is the last one before pooling, in a U-Net the end of its narrow part.

    Parameters
    ----------
    model
        Any model with gradients.

    Raises
    ------
    BadValueError
        If no layer gives a picture, or tokens follow the last one, as in a transformer.
    """
    _check_model(model)
    home = next((p.device for p in model.parameters()), torch.device("cpu"))
    with lend_model(model, home):
        return _find_layer(model, home)


@dataclass(frozen=True, eq=False)
class _Question:
    """Why a model gives a target what it gives."""

    model: Model
    index: int
    method: str
    layer: str
    baseline: Tensor | float
    steps: int

    @classmethod
    def ask(
        cls, model: Model, index: int, *, method: str, layer: str | None, baseline: float | None, steps: int
    ) -> _Question:
        """Check the question; the model is in evaluation mode."""
        card = model.card
        home = next((p.device for p in model.parameters()), torch.device("cpu"))
        if method not in METHODS:
            raise BadValueError(f"method {method!r}; expected one of {', '.join(METHODS)}.")
        if steps < 1:
            raise BadValueError(f"steps {steps}; expected at least 1.")
        if method == "grad-cam":
            layers = dict(model.net.named_modules())
            if layer is not None and not layers.get(layer):
                raise UnknownNameError(f"no layer {layer!r} in {card.name!r}.{suggest(layer, layers)}")
            return cls(model, index, method, layer or _find_layer(model, home), 0.0, steps)
        if baseline is None:
            return cls(model, index, method, "", 0.0, steps)
        value = torch.full((1, *card.window_shape), baseline, dtype=getattr(torch, card.dtype), device=home)
        return cls(model, index, method, "", model.prepare(value), steps)

    def value(self, x: Tensor) -> Tensor:
        """Return the target's logit, mean logit or number ``(B,)`` of normalised windows."""
        logits = self.model.net(x)
        scores = self.model.activate(logits) if self.model.card.task == "regression" else logits
        return scores[:, self.index].flatten(1).mean(1) if scores.ndim > 2 else scores[:, self.index]

    def answer(self, x: Tensor) -> Tensor:
        """Return attributions ``(B, *space)`` of normalised windows ``(B, C, *space)``."""
        captum = _require_captum()
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            if self.method == "grad-cam":
                method = captum.LayerGradCam(self.value, self.model.net.get_submodule(self.layer))
                coarse = method.attribute(x, relu_attributions=True)
                if not isinstance(coarse, torch.Tensor) or coarse.ndim != x.ndim:
                    raise BadValueError(
                        f"layer {self.layer!r} of {self.model.card.name!r} gives no picture; name another, or take "
                        "method='integrated-gradients'."
                    )
                mode = LINEAR[x.ndim - 3]
                answer = functional.interpolate(coarse.detach(), x.shape[2:], mode=mode, align_corners=False)
            else:
                limit = max(1, BATCH_PIXELS // math.prod(x.shape[2:]))
                settings = {"n_steps": self.steps, "internal_batch_size": limit}
                base = self.baseline
                # One window at a time: every step of it is a window in memory.
                parts = [
                    captum.IntegratedGradients(self.value).attribute(
                        one, base if isinstance(base, float) else base.expand_as(one), **settings
                    )
                    for one in torch.split(x, 1)
                ]
                answer = torch.cat(parts).detach()
        answer = answer.sum(1)
        if not torch.isfinite(answer).all():
            raise BadValueError(f"gradients of {self.model.card.name!r} are not finite: weights or input are damaged.")
        return answer


@dataclass(frozen=True, eq=False)
class _Canvas:
    """Where windows are blended: sums and weights in map pixels, and the grid whose steps are whole map pixels."""

    grid: TileGrid
    reduction: int
    array: Tensor
    weights: Tensor

    @classmethod
    def over(cls, grid: TileGrid, reduction: int | None) -> _Canvas:
        """Make an empty canvas for a grid."""
        whole = math.gcd(*grid.tile)
        able = [step for step in range(1, whole + 1) if whole % step == 0]
        if reduction is not None and reduction not in able:
            raise BadValueError(f"reduction {reduction}; expected a divisor of the tile {grid.tile}: {able}.")
        for step in able if reduction is None else [reduction]:
            coarse = replace(grid, stride=tuple(max(step, s // step * step) for s in grid.stride))
            last = [(n - 1) * s + t for n, s, t in zip(coarse.shape, coarse.stride, coarse.tile, strict=True)]
            shape = (2, *(n // step for n in last))
            if 4 * math.prod(shape) <= MEMORY_LIMIT:
                weights = gaussian_weights(tuple(t // step for t in grid.tile))
                return cls(coarse, step, torch.zeros(shape), weights)
        raise BadValueError(
            f"a map of {' × '.join(map(str, shape[1:]))} px takes more than {MEMORY_LIMIT >> 20} MiB; expected a "
            f"larger reduction, among {able}, or a smaller scan."
        )

    def add(self, answer: Tensor, positions: NDArray[np.int64], grid: TileGrid) -> None:
        """Blend attributions ``(B, *tile)`` of windows by position on `grid` into the canvas."""
        step = self.reduction
        pool = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)[answer.ndim - 2]
        coarse = pool(answer.cpu().unsqueeze(1), step) if step > 1 else answer.cpu().unsqueeze(1)
        corners = grid.corners(grid.indices[positions]) // step
        accumulate_windows(self.array, coarse, corners=corners.tolist(), weights=self.weights)

    def finish(self) -> NDArray[np.float32]:
        """Return the map, 0 where no window came."""
        extent = tuple(slice(0, -(-n // self.reduction)) for n in self.grid.extent)
        sums, weights = self.array[(slice(None), *extent)]
        found: NDArray[np.float32] = (sums / weights.clamp_min(torch.finfo(torch.float32).tiny)).numpy()
        return found


def _batches(tiles: Tiles, card: ModelCard, size: int) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
    """Yield positions and windows as the model takes them."""
    for begin in range(0, len(tiles), size):
        positions = np.arange(begin, min(begin + size, len(tiles)))
        yield positions, arrange_axes(torch.from_numpy(tiles.read(positions)), tiles.scan.axes, card.axes)


def _find_target(model: Model, tiles: Tiles, target: str | None, size: int) -> int:
    """Return the index of the class to explain: as named, the only one, or that with the largest mean score."""
    card = model.card
    if target is not None:
        return _index_of(card, target)
    if len(card.classes) == 1:
        return 0
    if card.task == "regression":
        raise BadValueError(f"model {card.name!r} gives several numbers; say which with target=…: {card.classes}.")
    home = next((p.device for p in model.parameters()), torch.device("cpu"))
    total = torch.zeros(len(card.classes))
    with torch.inference_mode():
        for _, windows in _batches(tiles, card, size):
            scores = model(windows.to(home))
            total += scores.reshape(*scores.shape[:2], -1).mean(2).sum(0).cpu()
    return int(total.argmax())


def _index_of(card: ModelCard, target: str) -> int:
    if target not in card.classes:
        raise UnknownNameError(f"model {card.name!r} has no class {target!r}.{suggest(target, card.classes)}")
    return card.classes.index(target)


def _find_layer(model: Model, device: torch.device) -> str:
    card = model.card
    calls: Counter[str] = Counter()
    shapes: list[tuple[str, tuple[int, ...]]] = []

    def note(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            calls[name] += 1
            if isinstance(output, torch.Tensor):
                shapes.append((name, tuple(output.shape)))

        return hook

    handles = [module.register_forward_hook(note(name)) for name, module in model.net.named_modules() if name]
    try:
        with torch.inference_mode():
            window = torch.zeros((1, *card.window_shape), dtype=getattr(torch, card.dtype), device=device)
            model.net(model.prepare(window))
    finally:
        for handle in handles:
            handle.remove()
    ndim = 2 + len(card.tile)
    pictures = [
        (number, name, math.prod(shape[2:]))
        for number, (name, shape) in enumerate(shapes)
        if len(shape) == ndim
        and calls[name] == 1
        and math.prod(shape[2:]) > 1
        # Channels that come last would pass for space.
        and all(n <= t for n, t in zip(shape[2:], card.tile, strict=True))
    ]
    coarsest = min((size for _, _, size in pictures), default=0)
    found = [(number, name) for number, name, size in pictures if size == coarsest][-1:]
    if not found or any(2 < len(shape) != ndim for _, shape in shapes[found[0][0] :]):
        raise BadValueError(
            f"{card.name!r} has no layer that gives a picture near its end, as a transformer has none; name one with "
            "layer='…', or take method='integrated-gradients'."
        )
    return found[0][1]


def _check_model(model: Model) -> None:
    card = model.card
    if isinstance(model.net, OnnxNet):
        raise BadValueError(f"{card.name!r} is an ONNX graph, which has no gradients; load its package instead.")
    if card.axes == "ic":
        raise BadValueError(f"{card.name!r} looks at bags, not at pixels: its attention explains it, see dhlab.mil.")


def _require_captum() -> ModuleType:
    try:
        from captum import attr
    except ImportError as error:
        raise MissingDependencyError("explain needs captum; install it with: pip install 'dhlab[explain]'") from error
    return attr
