"""Stains of histological images: taken apart, put together, fitted, and made alike."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from dhlab.errors import BadShapeError, BadValueError, UnknownNameError, suggest
from dhlab.kernels._choice import choose
from dhlab.kernels._cpu.stain import can_change, can_convert, convert_cpu, fit_cpu, map_cpu
from dhlab.kernels._operators import register
from dhlab.kernels.density import StainMap, through_density_reference

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = [
    "PRESETS",
    "ColourStatistics",
    "Stains",
    "combine_stains",
    "combine_stains_reference",
    "macenko_fit",
    "macenko_fit_reference",
    "normalize_stain",
    "normalize_stain_reference",
    "reinhard_fit",
    "reinhard_fit_reference",
    "separate_stains",
    "separate_stains_reference",
    "vahadane_fit",
    "vahadane_fit_reference",
]

METHODS = ("macenko", "reinhard", "vahadane")
LEAST_PIXELS, LEAST_SINE, LEAST_AMOUNT, LEAST_SPREAD = 16, 0.01, 0.01, 1e-3
LEAST_LIGHT = 2.0**-11  # an eighth of a grey level, where Reinhard's logarithm ends
# Natural density of red, green and blue per stain; Ruifrok & Johnston 2001 as scikit-image has them.
HED = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))
HDX = ((0.65, 0.704, 0.286), (0.268, 0.570, 0.776), (0.383284, -0.427752, 0.181828))
# The reference of Macenko's published code, that torchstain and others ship; the largest amounts belong to it.
HE, MOST = ((0.5626, 0.7201, 0.4062), (0.2159, 0.8012, 0.5581)), (1.9705, 1.0308)
PRESETS = ("hed", "hdx", "macenko")
# Reinhard et al. 2001: light to cone responses, and their decimal logarithms to l, alpha and beta.
CONES = ((0.3811, 0.5783, 0.0402), (0.1967, 0.7244, 0.0782), (0.0241, 0.1288, 0.8444))
OPPONENT = ((3**-0.5,) * 3, (6**-0.5, 6**-0.5, -2 * 6**-0.5), (2**-0.5, -(2**-0.5), 0.0))
FIT = 9  # numbers of a fit: two stains and their largest amounts, or mean and spread; last, whether it was fitted
SWATCHES = 8

Value = TypeVar("Value", bound="Stains | ColourStatistics")


@dataclass(frozen=True)
class Stains:
    """Colours of the stains of B images, as `macenko_fit` and `vahadane_fit` find them, or one preset for all.

    Light of grey level ``I`` has the density ``-ln((I + offset) / white)`` per channel; amounts of stains add up to it.

    Parameters
    ----------
    matrix
        ``(B, K, 3)`` float32: density of red, green and blue that one unit of each of K stains has (K is 2 or 3).
    most
        ``(B, K)`` float32: amount that counts as full, the 99th percentile of a fitted image; None in presets for
        separation.
    fitted
        ``(B,)`` bool; False where an image had too little tissue or one stain only. Such images are left unchanged, and
        hold the values of the preset ``"macenko"``.
    names
        One per stain.
    white
        Grey level without stain.
    offset
        Grey levels that are added before the logarithm.
    floor
        Least amount that is given back: 0, or minus infinity to let measured amounts be negative.

    Raises
    ------
    BadShapeError
        If the tensors do not fit each other.
    """

    matrix: Tensor
    most: Tensor | None
    fitted: Tensor
    names: tuple[str, ...] = ("haematoxylin", "eosin")
    white: float = 255.0
    offset: float = 0.0
    floor: float = 0.0

    def __post_init__(self) -> None:
        batch, stains = len(self.matrix), len(self.names)
        expected = {"matrix": (batch, stains, 3), "most": (batch, stains), "fitted": (batch,)}
        for name, shape in expected.items():
            value = getattr(self, name)
            if value is not None and tuple(value.shape) != shape:
                raise BadShapeError(f"{name} of the stains is {tuple(value.shape)}; expected {shape}.")
        if stains not in (2, 3):
            raise BadShapeError(f"{stains} stains; expected 2 or 3, since an image has three channels.")

    @classmethod
    def preset(cls, name: str) -> Stains:
        """Return published stains by `name`: ``"hed"``, ``"hdx"`` (scikit-image's matrices) or ``"macenko"``.

        Raises
        ------
        UnknownNameError
            If there is none of that name.
        """
        yes = torch.ones(1, dtype=torch.bool)
        if name == "macenko":
            return cls(torch.tensor([HE]), torch.tensor([MOST]), yes, white=240.0, offset=1.0, floor=-math.inf)
        if name == "hed":
            return cls(torch.tensor([HED]), None, yes, names=("haematoxylin", "eosin", "DAB"))
        if name == "hdx":
            return cls(torch.tensor([HDX]), None, yes, names=("haematoxylin", "DAB", "residual"))
        raise UnknownNameError(
            f"no stains are called {name!r}; there are {', '.join(PRESETS)}.{suggest(name, PRESETS)}"
        )

    def __len__(self) -> int:
        return len(self.matrix)

    def __repr__(self) -> str:
        count = "" if len(self) == 1 else f" of {len(self)} images, {int(self.fitted.sum())} fitted"
        return f"Stains({', '.join(self.names)}{count}, on {self.matrix.device})"

    def _repr_html_(self) -> str:
        rows = []
        for sample in self.matrix[:SWATCHES].cpu():
            colours = [",".join(f"{level:.0f}" for level in 255 * torch.exp(-stain)) for stain in sample]
            cells = "".join(f'<td style="background:rgb({c});width:4em;height:1.5em"></td>' for c in colours)
            rows.append(f"<tr>{cells}</tr>")
        head = "".join(f"<th>{name}</th>" for name in self.names)
        more = f"<p>and {len(self) - SWATCHES} more</p>" if len(self) > SWATCHES else ""
        return f"<table><tr>{head}</tr>{''.join(rows)}</table>{more}"

    def to(self, device: torch.device | str) -> Stains:
        """Return the same stains with their tensors on `device`."""
        return _move(self, device)

    def unmixing(self) -> Tensor:
        """Return ``(B, 3, 4)`` float64: log2 of light 0..1 to amounts; rows beyond the stains are 0."""
        inverse = torch.linalg.pinv(self.matrix.double()).mT  # (B, K, 3)
        constant = inverse.sum(-1, keepdim=True) * math.log(self.white / 255)
        affine = torch.cat([-math.log(2) * inverse, constant], -1)
        return torch.nn.functional.pad(affine, (0, 0, 0, 3 - affine.shape[1]))

    def mixing(self) -> Tensor:
        """Return ``(B, 3, 4)`` float64: amounts to log2 of light 0..1; columns beyond the stains are 0."""
        density = torch.nn.functional.pad(self.matrix.double().mT / -math.log(2), (0, 3 - len(self.names)))
        constant = torch.full_like(density[..., :1], math.log2(self.white / 255))
        return torch.cat([density, constant], -1)

    def floors(self) -> Tensor:
        """Return ``(B, 3)`` float32: the least amount of each stain, 0 beyond them where there is one."""
        return torch.full((len(self), 3), self.floor, dtype=torch.float32, device=self.matrix.device)

    def map_to(self, reference: Stains) -> StainMap:
        """Return the change that gives images of these stains the stains of `reference` (of one image, or of B).

        Images that were not fitted change by no more than the offset.

        Raises
        ------
        BadValueError
            If either has no largest amounts, as presets for separation.
        """
        if self.most is None or reference.most is None:
            raise BadValueError("these stains have no largest amounts to scale by; fit them, or take 'macenko'.")
        scale = torch.nn.functional.pad((reference.most / self.most).double(), (0, 4 - len(self.names)), value=1.0)
        unmix, mix = self.unmixing(), reference.mixing() * scale.unsqueeze(1)
        # Without a fit: log2 of light as it is.
        same = torch.eye(3, 4, dtype=torch.float64, device=self.matrix.device)
        spared = ~self.fitted
        return StainMap(
            torch.where(spared.view(-1, 1, 1), same, unmix).float(),
            torch.where(spared.view(-1, 1, 1), same, mix).float(),
            torch.where(spared.view(-1, 1), -torch.inf, self.floors()),
            offset=self.offset / 255,
        )


@dataclass(frozen=True)
class ColourStatistics:
    """Mean and spread of B images in the opponent space of Reinhard et al., as `reinhard_fit` finds them.

    Parameters
    ----------
    mean, spread
        ``(B, 3)`` float32: mean and standard deviation of l, alpha and beta, from decimal logarithms of cone responses.
    fitted
        ``(B,)`` bool; False where an image had too little tissue or too little spread. Such images are left unchanged.

    Raises
    ------
    BadShapeError
        If the tensors do not fit each other.
    """

    mean: Tensor
    spread: Tensor
    fitted: Tensor

    def __post_init__(self) -> None:
        batch = len(self.mean)
        for name, shape in {"mean": (batch, 3), "spread": (batch, 3), "fitted": (batch,)}.items():
            if tuple(getattr(self, name).shape) != shape:
                raise BadShapeError(f"{name} of the colours is {tuple(getattr(self, name).shape)}; expected {shape}.")

    def __len__(self) -> int:
        return len(self.mean)

    def __repr__(self) -> str:
        return f"ColourStatistics({len(self)} images, {int(self.fitted.sum())} fitted, on {self.mean.device})"

    def to(self, device: torch.device | str) -> ColourStatistics:
        """Return the same statistics with their tensors on `device`."""
        return _move(self, device)

    def map_to(self, reference: ColourStatistics) -> StainMap:
        """Return the change that gives images of these colours the mean and spread of `reference` (of one, or of B)."""
        device = self.mean.device
        cones = torch.tensor(CONES, dtype=torch.float64, device=device)
        opponent = torch.tensor(OPPONENT, dtype=torch.float64, device=device)
        spared = ~self.fitted.unsqueeze(-1)
        ratio = torch.where(spared, 1.0, reference.spread.double() / self.spread.double())  # (B, 3)
        shift = torch.where(spared, 0.0, reference.mean.double() - ratio * self.mean.double())
        unmix = torch.nn.functional.pad(opponent * math.log10(2), (0, 1)).expand(len(self), 3, 4)
        inverse = opponent.mT / math.log10(2)
        mix = torch.cat([inverse * ratio.unsqueeze(1), (inverse @ shift.unsqueeze(-1))], -1)
        return StainMap(
            unmix.float(),
            mix.float(),
            torch.full((len(self), 3), -torch.inf, device=device),
            before=cones.float().expand(len(self), 3, 3),
            after=torch.linalg.inv(cones).float().expand(len(self), 3, 3),
            least=LEAST_LIGHT,
        )


def separate_stains(
    images: Tensor, stains: Stains | str = "hed", *, channel_axis: int = -1, out: Tensor | None = None
) -> Tensor:
    """Take images apart into amounts of stains, by their densities (colour deconvolution).

    Amounts are natural densities; `skimage.color.rgb2hed` gives them divided by ln 10⁶ = 13.8.

    Parameters
    ----------
    images
        ``(B, H, W, 3)`` or ``(B, 3, H, W)``: uint8, or float in 0..1, through which gradients flow.
    stains
        One for all images or one per image, or the name of a preset.
    channel_axis
        Where the channels are: -1 (last) or 1.
    out
        Of the result's shape and type, to write to.

    Returns
    -------
    Tensor
        Axes as `images`, with K stains for the three channels, float32 (float64 for float64). Each stain's map
        is dense.

    Raises
    ------
    BadShapeError
        If `images`, `stains` and `out` do not fit each other.

    References
    ----------
    Ruifrok & Johnston, "Quantification of histochemical staining by color deconvolution", Anal. Quant. Cytol. Histol.
    2001.
    """
    stains = Stains.preset(stains) if isinstance(stains, str) else stains
    moved, _ = _channels_second(images, channel_axis, stored_only=False)
    stains = _for_batch(stains.to(images.device), len(moved))
    count = len(stains.names)
    if images.requires_grad or moved.dtype == torch.float64 or torch.compiler.is_exporting():
        result = separate_stains_reference(moved, stains).movedim(1, channel_axis)
        return result if out is None else out.copy_(result)
    target = _amounts_out(moved, count, channel_axis, out)
    packed = torch.cat([stains.unmixing().float().flatten(1), stains.floors()], 1)  # (B, 15)
    CONVERT(moved, packed, True, [stains.offset / 255, 1e-6], target.movedim(channel_axis, 1))
    return target


def separate_stains_reference(images: Tensor, stains: Stains) -> Tensor:
    """Say in plain PyTorch what `separate_stains` does.

    Parameters
    ----------
    images
        ``(B, 3, *space)``: uint8, or float in 0..1.
    stains
        B of them.

    Returns
    -------
    Tensor
        ``(B, K, *space)`` float32, or float64 for float64.
    """
    light = images.float() / 255 if images.dtype == torch.uint8 else images
    kind = light.dtype
    logarithm = (light.flatten(2) + stains.offset / 255).clamp_min(1e-6).log2()  # (B, 3, P)
    unmix = stains.unmixing().to(kind)[:, : len(stains.names)]
    amounts = unmix[..., :3] @ logarithm + unmix[..., 3:]
    return amounts.clamp_min(stains.floor).view(len(images), -1, *images.shape[2:])


def combine_stains(
    amounts: Tensor, stains: Stains | str = "hed", *, channel_axis: int = -1, out: Tensor | None = None
) -> Tensor:
    """Put amounts of stains together into images; undoes `separate_stains` where nothing was cut off.

    Parameters
    ----------
    amounts
        ``(B, H, W, K)`` or ``(B, K, H, W)`` float, natural densities; gradients flow through them.
    stains
        One for all images or one per image, or the name of a preset.
    channel_axis
        Where the stains are: -1 (last) or 1.
    out
        Of the result's shape and type, to write to.

    Returns
    -------
    Tensor
        Axes as `amounts`, with three channels for the stains, float32 (float64 for float64), in 0..1. Each channel is
        dense.

    Raises
    ------
    BadShapeError
        If `amounts`, `stains` and `out` do not fit each other.
    """
    stains = Stains.preset(stains) if isinstance(stains, str) else stains
    count = len(stains.names)
    if amounts.ndim != 4 or amounts.shape[channel_axis] != count or not amounts.is_floating_point():
        raise BadShapeError(
            f"amounts are {tuple(amounts.shape)} {amounts.dtype} with stains on axis {channel_axis}; expected "
            f"(B, H, W, {count}) or (B, {count}, H, W), float."
        )
    moved = amounts.movedim(channel_axis, 1)
    stains = _for_batch(stains.to(amounts.device), len(moved))
    if amounts.requires_grad or moved.dtype == torch.float64 or torch.compiler.is_exporting():
        result = combine_stains_reference(moved, stains).movedim(1, channel_axis)
        return result if out is None else out.copy_(result)
    target = _amounts_out(moved, 3, channel_axis, out)
    packed = torch.nn.functional.pad(stains.mixing().float().flatten(1), (0, 3))
    CONVERT(moved, packed, False, [stains.offset / 255, 0.0], target.movedim(channel_axis, 1))
    return target


def combine_stains_reference(amounts: Tensor, stains: Stains) -> Tensor:
    """Say in plain PyTorch what `combine_stains` does.

    Parameters
    ----------
    amounts
        ``(B, K, *space)`` float.
    stains
        B of them.

    Returns
    -------
    Tensor
        ``(B, 3, *space)`` of the type of `amounts`, in 0..1.
    """
    count, kind = len(stains.names), amounts.dtype
    mix = stains.mixing().to(kind)
    light = (mix[..., :count] @ amounts.flatten(2) + mix[..., 3:]).exp2() - stains.offset / 255
    return light.clamp(0, 1).view(len(amounts), 3, *amounts.shape[2:])


def macenko_fit(
    images: Tensor,
    *,
    white: float = 240.0,
    alpha: float = 1.0,
    beta: float = 0.15,
    together: bool = False,
    channel_axis: int = -1,
) -> Stains:
    """Find haematoxylin and eosin at the edges of the densities' main plane, as torchstain's PyTorch form does.

    Percentiles are values of the nearest rank, without interpolation; haematoxylin is the stain with more red density.
    An image with fewer than 16 tissue pixels, with stains less than 0.01 rad apart or with a 99th percentile of an
    amount below 0.01 is not fitted.

    Parameters
    ----------
    images
        ``(B, H, W, 3)`` or ``(B, 3, H, W)`` uint8, any strides.
    white
        Grey level without stain.
    alpha
        Percentile of the angles at which stains lie, and 100 less it.
    beta
        Tissue has at least this natural density in each channel.
    together
        Fit all images as one: tiles of a slide.
    channel_axis
        Where the channels are: -1 (last) or 1.

    Returns
    -------
    Stains
        One per image, or one.

    Raises
    ------
    BadShapeError
        If `images` has another shape or type.

    References
    ----------
    Macenko et al., "A method for normalizing histology slides for quantitative analysis", ISBI 2009; torchstain 1.4.
    """
    moved, _ = _channels_second(images, channel_axis)
    return _as_stains(_fit(moved, "macenko", (white, beta, alpha, 0.0), together), "macenko", white)


def vahadane_fit(
    images: Tensor,
    *,
    white: float = 240.0,
    beta: float = 0.15,
    sparsity: float = 0.1,
    together: bool = False,
    channel_axis: int = -1,
) -> Stains:
    """Find haematoxylin and eosin as a non-negative dictionary with sparse non-negative amounts.

    Minimises ``½‖density - amountsᵀ·matrix‖² + sparsity·Σ amounts`` over tissue, rows of the matrix of unit length, as
    StainTools does; starts from the preset ``"macenko"``. Largest amounts are 99th percentiles of amounts by
    least squares, which are also what is applied, cut off at 0. An image is not fitted for the reasons of
    `macenko_fit`.

    Parameters
    ----------
    images
        ``(B, H, W, 3)`` or ``(B, 3, H, W)`` uint8, any strides.
    white
        Grey level without stain.
    beta
        Tissue has at least this natural density in each channel.
    sparsity
        Weight of the amounts' sum.
    together
        Fit all images as one: tiles of a slide.
    channel_axis
        Where the channels are: -1 (last) or 1.

    Returns
    -------
    Stains
        One per image, or one.

    Raises
    ------
    BadShapeError
        If `images` has another shape or type.

    References
    ----------
    Vahadane et al., "Structure-preserving color normalization and sparse stain separation for histological images",
    IEEE Transactions on Medical Imaging 2016.
    """
    moved, _ = _channels_second(images, channel_axis)
    return _as_stains(_fit(moved, "vahadane", (white, beta, 0.0, sparsity), together), "vahadane", white)


def reinhard_fit(
    images: Tensor,
    *,
    tissue: bool = True,
    white: float = 240.0,
    beta: float = 0.15,
    together: bool = False,
    channel_axis: int = -1,
) -> ColourStatistics:
    """Measure mean and spread in the logarithmic opponent space of the paper.

    torchstain, stainx and others take CIELAB instead, a cube root in place of the logarithm. An image with fewer than
    16 pixels to measure, or a spread below 0.001, is not fitted.

    Parameters
    ----------
    images
        ``(B, H, W, 3)`` or ``(B, 3, H, W)`` uint8, any strides.
    tissue
        Measure tissue only, so that the share of background does not colour the result; else all pixels.
    white, beta
        Tissue has at least the natural density `beta` below the grey level `white` in each channel.
    together
        Measure all images as one: tiles of a slide.
    channel_axis
        Where the channels are: -1 (last) or 1.

    Returns
    -------
    ColourStatistics
        One per image, or one.

    Raises
    ------
    BadShapeError
        If `images` has another shape or type.

    References
    ----------
    Reinhard et al., "Color transfer between images", IEEE Computer Graphics and Applications 2001.
    """
    moved, _ = _channels_second(images, channel_axis)
    return _as_colours(_fit(moved, "reinhard", (white, beta if tissue else -1.0, 0.0, 0.0), together))


def normalize_stain(
    images: Tensor,
    reference: Tensor | Stains | ColourStatistics | str = "macenko",
    *,
    method: str = "macenko",
    source: Stains | ColourStatistics | None = None,
    channel_axis: int = -1,
    out: Tensor | None = None,
) -> Tensor:
    """Give images the stains of a reference: each is fitted by itself, unless `source` says what it was stained with.

    Images that cannot be fitted (background, a single stain) come back unchanged; `macenko_fit` and its like say which.
    After Macenko's and Vahadane's fit grey levels are cut off as torchstain does, after Reinhard's they are rounded.

    Parameters
    ----------
    images
        ``(B, H, W, 3)`` or ``(B, 3, H, W)`` uint8, any strides.
    reference
        One image as ``(H, W, 3)`` or ``(3, H, W)``, or several that are fitted together, or a fit, or a preset's name.
    method
        ``"macenko"``, ``"reinhard"`` or ``"vahadane"``.
    source
        The fit of one slide for all images, or of each image; else it is made with the method's own defaults.
    channel_axis
        Where the channels are: -1 (last) or 1.
    out
        Of the shape of `images`, uint8, to write to, any strides; may be `images` itself.

    Returns
    -------
    Tensor
        Like `images`.

    Raises
    ------
    BadShapeError
        If `images`, `reference`, `source` and `out` do not fit each other.
    BadValueError
        If the reference could not be fitted, or is of another method.
    UnknownNameError
        If there is no such method or preset.
    """
    if method not in METHODS:
        raise UnknownNameError(f"method {method!r}; expected one of {', '.join(METHODS)}.{suggest(method, METHODS)}")
    moved, axis = _channels_second(images, channel_axis)
    if out is not None and (out.shape != images.shape or out.dtype != torch.uint8 or out.device != images.device):
        raise BadShapeError(f"out is {tuple(out.shape)} {out.dtype}; expected {tuple(images.shape)} uint8.")
    out = torch.empty_like(images) if out is None else out
    target = _for_batch(_as_reference(reference, method, axis).to(images.device), len(moved))
    if source is not None:
        if not isinstance(source, type(target)):
            raise BadValueError(f"source is {type(source).__name__}; method {method!r} needs {type(target).__name__}.")
        source = _for_batch(source.to(images.device), len(moved))
        _apply(moved, source, target, out.movedim(channel_axis, 1))
        return out
    white = target.white if isinstance(target, Stains) else 240.0
    parameters = [240.0, 0.15, 1.0, 0.1, white]
    NORMALIZE(moved, _pack(target), METHODS.index(method), parameters, out.movedim(channel_axis, 1))
    return out


def normalize_stain_reference(
    images: Tensor, source: Stains | ColourStatistics, reference: Stains | ColourStatistics
) -> Tensor:
    """Say in plain PyTorch what `normalize_stain` does with images whose fit is known, in float64.

    Parameters
    ----------
    images
        ``(B, 3, *space)`` uint8.
    source, reference
        Fits of the same kind, B of the first, one or B of the second.

    Returns
    -------
    Tensor
        ``(B, 3, *space)`` uint8.
    """
    return _through(images, _map(source, reference), source.fitted, _shift(source), torch.float64)


def macenko_fit_reference(
    images: Tensor, *, white: float = 240.0, alpha: float = 1.0, beta: float = 0.15, together: bool = False
) -> Stains:
    """Say in plain PyTorch, in float64, what `macenko_fit` does.

    Parameters
    ----------
    images
        ``(B, 3, *space)`` uint8.
    white, alpha, beta, together
        As `macenko_fit` has them.
    """
    fits = _fit_reference(images, "macenko", (white, beta, alpha, 0.0), together)
    return _as_stains(fits, "macenko", white)


def vahadane_fit_reference(
    images: Tensor, *, white: float = 240.0, beta: float = 0.15, sparsity: float = 0.1, together: bool = False
) -> Stains:
    """Say in plain PyTorch, in float64, what `vahadane_fit` does: amounts and dictionary in turn, until neither moves.

    Parameters
    ----------
    images
        ``(B, 3, *space)`` uint8.
    white, beta, sparsity, together
        As `vahadane_fit` has them.
    """
    fits = _fit_reference(images, "vahadane", (white, beta, 0.0, sparsity), together)
    return _as_stains(fits, "vahadane", white)


def reinhard_fit_reference(
    images: Tensor, *, tissue: bool = True, white: float = 240.0, beta: float = 0.15, together: bool = False
) -> ColourStatistics:
    """Say in plain PyTorch, in float64, what `reinhard_fit` does.

    Parameters
    ----------
    images
        ``(B, 3, *space)`` uint8.
    tissue, white, beta, together
        As `reinhard_fit` has them.
    """
    parameters = (white, beta if tissue else -1.0, 0.0, 0.0)
    return _as_colours(_fit_reference(images, "reinhard", parameters, together))


def _fit(images: Tensor, method: str, parameters: Sequence[float], together: bool) -> Tensor:
    """Return ``(G, 9)``: the fits of G groups of ``(B, 3, H, W)`` images."""
    group = len(images) if together else 1
    fits = torch.empty((1 if together else len(images), FIT), dtype=torch.float32, device=images.device)
    OPERATOR(images, METHODS.index(method), [*parameters, 240.0], group, fits)
    return fits


def _run_fit(images: Tensor, method: int, parameters: list[float], group: int, fits: Tensor) -> None:
    if images.numel() == 0:
        fits.copy_(_unfitted(METHODS[method], fits.device))
        return
    form = choose(images, covered=can_change(images))
    if form == "triton":
        from dhlab.kernels._triton.stain import fit_triton

        start = _unfitted(METHODS[method], fits.device)
        fit_triton(images, method=METHODS[method], parameters=parameters, group=group, fallback=start, fits=fits)
    elif form == "cpu":
        start = _unfitted(METHODS[method], fits.device)
        fit_cpu(images, method=method, parameters=parameters, group=group, fallback=start, fits=fits)
    else:
        fits.copy_(_fit_reference(images, METHODS[method], parameters, group > 1))


def _run_normalize(images: Tensor, reference: Tensor, method: int, parameters: list[float], out: Tensor) -> None:
    if images.numel() == 0:
        return
    if choose(images, covered=can_change(images, out)) == "cpu":
        fits = torch.empty((len(images), FIT), dtype=torch.float32)
        start = _unfitted(METHODS[method], fits.device)
        fit_cpu(
            images,
            method=method,
            parameters=parameters,
            group=1,
            fallback=start,
            fits=fits,
            reference=reference,
            out=out,
        )
        return
    fits = torch.empty((len(images), FIT), dtype=torch.float32, device=images.device)
    _run_fit(images, method, parameters, 1, fits)
    if METHODS[method] == "reinhard":
        _apply(images, _as_colours(fits), _as_colours(reference), out)
    else:
        source = _as_stains(fits, METHODS[method], parameters[0])
        _apply(images, source, _as_stains(reference, METHODS[method], parameters[4]), out)


def _run_map(images: Tensor, maps: Tensor, fitted: Tensor, around: bool, constants: list[float], out: Tensor) -> None:
    """Send bytes ``(B, 3, H, W)`` through packed maps; `constants`: offset, least, and what is added before cutting."""
    form = choose(images, covered=can_change(images, out))
    if form == "triton":
        from dhlab.kernels._triton.stain import map_triton

        map_triton(images, maps=maps, fitted=fitted, around=around, constants=constants, out=out)
    elif form == "cpu":
        map_cpu(images, maps=maps, fitted=fitted, around=around, constants=constants, out=out)
    else:
        offset, least, shift = constants
        stain = StainMap(
            maps[:, :12].reshape(-1, 3, 4),
            maps[:, 12:24].reshape(-1, 3, 4),
            maps[:, 24:27],
            before=maps[:, 27:36].reshape(-1, 3, 3) if around else None,
            after=maps[:, 36:].reshape(-1, 3, 3) if around else None,
            offset=offset,
            least=least,
        )
        out.copy_(_through(images, stain, fitted, shift, torch.float32))


def _run_convert(images: Tensor, matrices: Tensor, separates: bool, constants: list[float], out: Tensor) -> None:
    """Write amounts of light, or light of amounts, ``(B, C, H, W)``; `matrices` ``(B, 15)``: affine, then floors."""
    form = choose(images, covered=can_convert(images, out))
    if form == "triton":
        from dhlab.kernels._triton.stain import convert_triton

        convert_triton(images, matrices=matrices, separates=separates, constants=constants, out=out)
    elif form == "cpu":
        convert_cpu(images, matrices=matrices, separates=separates, constants=constants, out=out)
    else:
        affine, floor = matrices[:, :12].view(-1, 3, 4), matrices[:, 12:, None]
        values = (images.float() / 255 if images.dtype == torch.uint8 else images.float()).flatten(2)
        if separates:
            values = (values + constants[0]).clamp_min(constants[1]).log2()
            values = torch.maximum(affine[..., :3] @ values + affine[..., 3:], floor)[:, : out.shape[1]]
        else:
            values = (affine[..., : values.shape[1]] @ values + affine[..., 3:]).exp2() - constants[0]
            values = values.clamp(0, 1)
        out.copy_(values.view(out.shape))


OPERATOR = register(
    "fit_stain(Tensor images, int method, float[] parameters, int group, Tensor(a!) fits) -> ()", _run_fit
)
NORMALIZE = register(
    "normalize_stain(Tensor images, Tensor reference, int method, float[] parameters, Tensor(a!) out) -> ()",
    _run_normalize,
)
MAP = register(
    "map_stain(Tensor images, Tensor maps, Tensor fitted, bool around, float[] constants, Tensor(a!) out) -> ()",
    _run_map,
)
CONVERT = register(
    "convert_stain(Tensor images, Tensor matrices, bool separates, float[] constants, Tensor(a!) out) -> ()",
    _run_convert,
)


def _apply(images: Tensor, source: Stains | ColourStatistics, target: Stains | ColourStatistics, out: Tensor) -> None:
    change = _map(source, target)
    constants = [change.offset, change.least, _shift(source)]
    MAP(images, change.pack(), source.fitted.contiguous(), change.before is not None, constants, out)


def _map(source: Stains | ColourStatistics, target: Stains | ColourStatistics) -> StainMap:
    if isinstance(source, Stains) and isinstance(target, Stains):
        return source.map_to(target)
    assert isinstance(source, ColourStatistics)
    assert isinstance(target, ColourStatistics)
    return source.map_to(target)


def _shift(source: Stains | ColourStatistics) -> float:
    """Return what is added to grey levels before their fraction is cut off: a half, unless the offset stands for it."""
    return 0.0 if isinstance(source, Stains) and source.offset else 0.5


def _through(images: Tensor, stain: StainMap, fitted: Tensor, shift: float, kind: torch.dtype) -> Tensor:
    levels = through_density_reference(images.to(kind) / 255, stain) * 255 + shift
    spared = ~fitted.view(-1, *(1,) * (images.ndim - 1))
    return torch.where(spared, images, levels.clamp(0, 255).to(torch.uint8))


def _fit_reference(images: Tensor, method: str, parameters: Sequence[float], together: bool) -> Tensor:
    white, beta, alpha, sparsity = parameters[:4]
    rows = images.flatten(2).movedim(1, -1)  # (B, P, 3)
    rows = rows.reshape(1, -1, 3) if together else rows
    fits = _unfitted(method, images.device).double().repeat(len(rows), 1)
    for fit, levels in zip(fits, rows, strict=True):
        density = ((levels.double() + 1) / white).log().neg()  # (P, 3)
        tissue = (density >= beta).all(-1)
        if int(tissue.sum()) < LEAST_PIXELS:
            continue
        if method == "reinhard":
            _measure_colours(levels[tissue].double() / 255, fit)
            continue
        stains = (
            _edges_of_plane(density[tissue], alpha)
            if method == "macenko"
            else _learn_dictionary(density[tissue], fit[:6].view(2, 3), sparsity)
        )
        if stains[0, 0] < stains[1, 0]:
            stains = stains.flip(0)
        if not float(torch.linalg.cross(stains[0], stains[1]).norm()) > LEAST_SINE:
            continue
        amounts = density @ torch.linalg.pinv(stains)  # (P, 2)
        most = torch.stack([_nearest_rank(amounts[:, k], 99) for k in range(2)])
        if bool((most > LEAST_AMOUNT).all()):
            fit[:6], fit[6:8], fit[8] = stains.flatten(), most, 1
    return fits


def _nearest_rank(values: Tensor, percent: float) -> Tensor:
    return values.kthvalue(1 + round(0.01 * percent * (len(values) - 1))).values


def _edges_of_plane(density: Tensor, alpha: float) -> Tensor:
    """Return ``(2, 3)``: the directions at two percentiles of the angle in the plane of the two main axes."""
    _, axes = torch.linalg.eigh(torch.cov(density.T))
    across, along = axes[:, 1], axes[:, 2]
    along = along if float(density.mean(0) @ along) >= 0 else -along
    angle = torch.atan2(density @ along, density @ across)
    edges = [_nearest_rank(angle, percent) for percent in (alpha, 100 - alpha)]
    return torch.stack([across * edge.cos() + along * edge.sin() for edge in edges])


def _learn_dictionary(density: Tensor, start: Tensor, sparsity: float) -> Tensor:
    stains = start / start.norm(dim=1, keepdim=True)
    for _ in range(1000):
        amounts = _sparse_amounts(density, stains, sparsity)
        products, cross, before = amounts.T @ amounts, amounts.T @ density, stains.clone()
        for k in range(2):
            row = (cross[k] - products[0, 1] * stains[1 - k]) / products[k, k].clamp_min(1e-30)
            row = row.clamp_min(0)
            if float(row.norm()) > 1e-10:
                stains[k] = row / row.norm()
        if float((stains - before).abs().max()) < 1e-8:
            break
    return stains


def _sparse_amounts(density: Tensor, stains: Tensor, sparsity: float) -> Tensor:
    """Return ``(P, 2)``: the exact non-negative amounts for a dictionary of two rows of unit length."""
    cosine = stains[0] @ stains[1]
    alone = density @ stains.T - sparsity  # what each would be without the other
    both = (alone - cosine * alone.flip(1)) / (1 - cosine**2).clamp_min(1e-12)
    return torch.where(both.flip(1) < 0, alone, both).clamp_min(0)


def _measure_colours(light: Tensor, fit: Tensor) -> None:
    cones = light @ light.new_tensor(CONES).T
    opponent = cones.clamp_min(LEAST_LIGHT).log10() @ light.new_tensor(OPPONENT).T
    spread = opponent.std(0, correction=0)
    if bool((spread > LEAST_SPREAD).all()):
        fit[:3], fit[3:6], fit[8] = opponent.mean(0), spread, 1


def _unfitted(method: str, device: torch.device) -> Tensor:
    values = (0.0,) * 3 + (1.0,) * 3 + (0.0,) * 3 if method == "reinhard" else (*HE[0], *HE[1], *MOST, 0.0)
    return torch.tensor(values, device=device)


def _as_stains(fits: Tensor, method: str, white: float) -> Stains:
    fits = fits.float()
    floor = 0.0 if method == "vahadane" else -math.inf
    return Stains(fits[:, :6].reshape(-1, 2, 3), fits[:, 6:8], fits[:, 8] > 0, white=white, offset=1.0, floor=floor)


def _as_colours(fits: Tensor) -> ColourStatistics:
    fits = fits.float()
    return ColourStatistics(fits[:, :3], fits[:, 3:6], fits[:, 8] > 0)


def _pack(fit: Stains | ColourStatistics) -> Tensor:
    """Return ``(B, 9)``, what `_as_stains` and `_as_colours` read."""
    if isinstance(fit, Stains):
        assert fit.most is not None
        parts = [fit.matrix.flatten(1), fit.most]
    else:
        parts = [fit.mean, fit.spread, torch.zeros_like(fit.mean[:, :2])]
    return torch.cat([part.float() for part in (*parts, fit.fitted.unsqueeze(1))], 1)


def _as_reference(
    reference: Tensor | Stains | ColourStatistics | str, method: str, axis: int
) -> Stains | ColourStatistics:
    """Return the fit that `normalize_stain` aims at."""
    if isinstance(reference, str):
        reference = Stains.preset(reference)
    if isinstance(reference, torch.Tensor):
        images = reference.unsqueeze(0) if reference.ndim == 3 else reference
        if method == "reinhard":
            fit: Stains | ColourStatistics = reinhard_fit(images, together=True, channel_axis=axis)
        else:
            find = macenko_fit if method == "macenko" else vahadane_fit
            fit = find(images, together=True, channel_axis=axis)
        if fit.fitted.device.type == "cpu" and not bool(fit.fitted.all()):
            raise BadValueError(
                f"the reference image could not be fitted by {method!r}: it holds too little tissue or one stain only."
            )
        reference = fit
    kind = ColourStatistics if method == "reinhard" else Stains
    if not isinstance(reference, kind):
        raise BadValueError(f"reference is {type(reference).__name__}; method {method!r} needs {kind.__name__}.")
    if isinstance(reference, Stains) and (reference.most is None or len(reference.names) != 2):
        raise BadValueError(f"reference {reference!r} has no two stains with largest amounts; take 'macenko' or fit.")
    return reference


def _for_batch(value: Value, batch: int) -> Value:
    """Return a value for each of `batch` images; one serves all."""
    if len(value) == batch:
        return value
    if len(value) != 1:
        raise BadShapeError(f"{len(value)} fits for {batch} images; expected one, or one per image.")
    return replace(value, **{n: t.expand(batch, *t.shape[1:]) for n, t in _tensors(value).items()})


def _move(value: Value, device: torch.device | str) -> Value:
    return replace(value, **{n: t.to(device, non_blocking=True) for n, t in _tensors(value).items()})


def _tensors(value: Stains | ColourStatistics) -> dict[str, Any]:
    found = {f.name: getattr(value, f.name) for f in fields(value)}
    return {name: tensor for name, tensor in found.items() if isinstance(tensor, torch.Tensor)}


def _channels_second(images: Tensor, channel_axis: int, *, stored_only: bool = True) -> tuple[Tensor, int]:
    """Return ``(B, 3, H, W)`` and where the channels were."""
    known = images.dtype == torch.uint8 or (not stored_only and images.is_floating_point())
    if images.ndim != 4 or channel_axis not in (1, -1, 3) or images.shape[channel_axis] != 3 or not known:
        raise BadShapeError(
            f"images are {tuple(images.shape)} {images.dtype} with channels on axis {channel_axis}; expected "
            f"(B, H, W, 3) or (B, 3, H, W) uint8{'' if stored_only else ' or float in 0..1'}."
        )
    return images.movedim(channel_axis, 1), channel_axis


def _amounts_out(moved: Tensor, channels: int, channel_axis: int, out: Tensor | None) -> Tensor:
    """Return `out`, or memory whose channels lie one after the other, with axes as the caller has them."""
    shape = (len(moved), channels, *moved.shape[2:])
    if out is None:
        return torch.empty(shape, dtype=torch.float32, device=moved.device).movedim(1, channel_axis)
    if out.movedim(channel_axis, 1).shape != shape or out.dtype != torch.float32:
        raise BadShapeError(f"out is {tuple(out.shape)} {out.dtype}; expected {shape} float32, stains as the images'.")
    return out
