"""Networks of torchvision and timm by name; both libraries load when one is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dhlab.errors import BadValueError, MissingDependencyError, UnknownNameError, suggest

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Source", "build_classifier", "find_source", "load_library"]

# Where a bare name is looked up, in this order.
LIBRARIES = {"torchvision": "torchvision.models", "timm": "timm"}
# Networks of torchvision that are built for one size of window, and the argument that takes it.
SIZED = {"vit_": "image_size", "maxvit_": "input_size"}
AUXILIARY = ("googlenet", "inception_v3")
REFUSALS = (AssertionError, KeyError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True)
class Source:
    """A network in a library.

    Parameters
    ----------
    library
        ``"torchvision"`` or ``"timm"``.
    name
        Its name there.
    tag
        Which of its published weights are meant, as in ``"resnet18.a1_in1k"``; empty for the library's own choice.
    """

    library: str
    name: str
    tag: str = ""

    def __str__(self) -> str:
        return f"{self.library}/{self.name}"


def load_library(name: str) -> Any:
    """Return torchvision's or timm's module of models.

    Raises
    ------
    MissingDependencyError
        If it is not installed, or not made for the installed torch.
    """
    try:
        return import_module(LIBRARIES[name])
    except (ImportError, OSError, RuntimeError) as error:
        raise MissingDependencyError(
            f"{name} does not load ({type(error).__name__}: {error}). Networks by name, and encoders of a U-Net, need "
            f"it: pip install 'dhlab[models]', with a torchvision made for torch {torch.__version__}. "
            "The networks 'unet', 'cnn' and 'attention-mil' work without."
        ) from error


def find_source(name: str, *, known: Sequence[str] = ()) -> Source:
    """Look a network up: in torchvision, then in timm, unless the name says where.

    Parameters
    ----------
    name
        ``"resnet18"``, ``"torchvision/resnet18"``, ``"timm/convnext_tiny"``, each also with a tag of published
        weights: ``"timm/resnet18.a1_in1k"``, ``"resnet50.IMAGENET1K_V2"``.
    known
        Names to suggest besides.

    Returns
    -------
    Source
        Where it is.

    Raises
    ------
    UnknownNameError
        If there is none of this name; the message has close ones.
    MissingDependencyError
        If the library does not load.
    """
    library, _, rest = name.rpartition("/")
    bare, _, tag = rest.partition(".")
    for place in [library] if library in LIBRARIES else [] if library else LIBRARIES:
        if bare in _names(place) and (not tag or tag in _tags(place, bare)):
            return Source(place, bare, tag)
    close = [n for place in ([library] if library in LIBRARIES else LIBRARIES) for n in _names(place)]
    tags = [f"{bare}.{t}" for place in LIBRARIES if bare in _names(place) for t in _tags(place, bare)] if tag else []
    raise UnknownNameError(f"no network {name!r}.{suggest(rest, tags or [*known, *dict.fromkeys(close)])}")


def build_classifier(
    source: Source, *, channels: int, classes: int, tile: Sequence[int], dropout: float = 0.0
) -> nn.Module:
    """Build a library's network with random weights; nothing is downloaded.

    Parameters
    ----------
    source
        Which.
    channels
        Input channels.
    classes
        Number of logits.
    tile
        Height and width of a window in pixels, for networks that are built for one size.
    dropout
        Chance that a feature is left out before the last layer while training; 0 is the library's own choice.

    Returns
    -------
    nn.Module
        From ``(B, channels, height, width)`` to logits ``(B, classes)``.

    Raises
    ------
    BadValueError
        If the library cannot build it so.
    """
    library = load_library(source.library)
    try:
        if source.library == "timm":
            options = {"drop_rate": dropout} if dropout else {}
            net: nn.Module = library.create_model(
                source.name, in_chans=channels, num_classes=classes, **options, **timm_size(source, tile)
            )
            return net
        options = {"dropout": dropout} if dropout else {}
        net = library.get_model(source.name, weights=None, num_classes=classes, **options, **_size(source, tile))
    except REFUSALS as error:
        raise BadValueError(
            f"{source} with tile {tuple(tile)}, {channels} channels and dropout {dropout:g} cannot be built: {error}"
        ) from error
    if channels != 3:
        _replace_stem(net, channels)
    return net


def timm_size(source: Source, tile: Sequence[int]) -> dict[str, Any]:
    """Return the argument that tells a network of timm its size of windows, if it is built for one."""
    fixed = load_library("timm").get_pretrained_cfg_value(source.name, "fixed_input_size")
    return {"img_size": tuple(tile)} if fixed else {}


def _size(source: Source, tile: Sequence[int]) -> dict[str, Any]:
    options: dict[str, Any] = {"aux_logits": False, "init_weights": True} if source.name in AUXILIARY else {}
    for start, argument in SIZED.items():
        if source.name.startswith(start):
            if len(set(tile)) > 1:
                raise ValueError("it takes square windows only")
            options[argument] = tile[0] if argument == "image_size" else tuple(tile)
    return options


def _replace_stem(net: nn.Module, channels: int) -> None:
    """Let the first convolution take another number of channels."""
    name, old = next((n, m) for n, m in net.named_modules() if isinstance(m, nn.Conv2d))
    new = nn.Conv2d(
        channels,
        old.out_channels,
        # torch types these as tuples of any length, and takes pairs.
        kernel_size=old.kernel_size,  # type: ignore[arg-type] # see above
        stride=old.stride,  # type: ignore[arg-type] # see above
        padding=old.padding,  # type: ignore[arg-type] # see above
        dilation=old.dilation,  # type: ignore[arg-type] # see above
        bias=old.bias is not None,
    )
    nn.init.normal_(new.weight, std=float(old.weight.detach().std()) * (old.in_channels / channels) ** 0.5)
    parent, _, child = name.rpartition(".")
    setattr(net.get_submodule(parent), child, new)


@cache
def _names(library: str) -> tuple[str, ...]:
    models = load_library(library)
    return tuple(models.list_models(**({"module": models} if library == "torchvision" else {})))


def _tags(library: str, name: str) -> list[str]:
    models = load_library(library)
    if library == "torchvision":
        return list(models.get_model_weights(name).__members__)
    return [full.partition(".")[2] for full in models.list_pretrained(f"{name}.*")]
