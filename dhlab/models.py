"""`Model`: a network with its preprocessing inside and a card that says what it wants; packages and ONNX files."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dhlab.cards import RANGES, ModelCard
from dhlab.errors import (
    BadFileError,
    BadShapeError,
    BadValueError,
    NotFoundError,
    UnknownNameError,
    suggest,
)
from dhlab.kernels.normalize import normalize
from dhlab.networks import (
    NETWORKS,
    Network,
    OnnxNet,
    build_network,
    find_published,
    find_source,
    open_onnx,
    pool_features,
    read_weights,
    take_over,
)
from dhlab.tasks import TASKS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

__all__ = ["FORMAT_VERSION", "Model", "ModelCard", "build_model", "create_model", "digest_weights", "load_model"]

FORMAT_VERSION = 1
CONFIG, WEIGHTS, GRAPH = "config.json", "model.safetensors", "model.onnx"
LARGEST_CONFIG = 1 << 24


class Model(nn.Module):
    """Normalise, network, activation: a batch of windows as stored goes in, scores come out.

    Training, notebook, ONNX and production therefore see the same bytes.

    Parameters
    ----------
    net
        Network from normalised float32 ``(B, C, *space)`` to logits ``(B, classes, *space)`` or ``(B, classes)``.
    card
        What the model wants and gives.
    """

    def __init__(self, net: nn.Module, card: ModelCard) -> None:
        super().__init__()
        self.net = net
        self.card = card

    def forward(self, x: Tensor) -> Tensor:
        """Return scores of a batch of windows.

        Parameters
        ----------
        x
            ``(B, *window)``, windows in the order and type of the card's `axes` and `dtype`, of any size that the
            network takes.

        Returns
        -------
        Tensor
            ``(B, classes, *space)`` or ``(B, classes)`` float32; in 0..1 after softmax or sigmoid.
        """
        if isinstance(self.net, OnnxNet) and self.card.input_layout == "window":
            scores: Tensor = self.net(self._checked(x))
            return scores
        return self.activate(self.logits(x))

    def logits(self, x: Tensor) -> Tensor:
        """Return what the network gives before the activation.

        Parameters
        ----------
        x
            ``(B, *window)``, as for `forward`.

        Returns
        -------
        Tensor
            ``(B, classes, *space)`` or ``(B, classes)`` float32.

        Raises
        ------
        BadShapeError
            If the windows have the wrong type, number of axes or channels.
        BadValueError
            If the model is an ONNX graph that gives scores.
        """
        card = self.card
        if isinstance(self.net, OnnxNet) and card.input_layout == "window":
            raise BadValueError(f"the ONNX graph of {card.name!r} gives scores, no logits; call the model itself.")
        logits: Tensor = self.net(self.prepare(x))
        return logits

    def features(self, x: Tensor) -> Tensor:
        """Return what the network saw in each window, before its head decides.

        Parameters
        ----------
        x
            ``(B, *window)``, as for `forward`.

        Returns
        -------
        Tensor
            ``(B, F)`` float32: the last layer's input, of a U-Net its deepest map, averaged over space.

        Raises
        ------
        BadShapeError
            If the windows have the wrong type, number of axes or channels.
        BadValueError
            If the model is an ONNX graph or an ensemble.
        """
        if isinstance(self.net, OnnxNet):
            raise BadValueError(f"{self.card.name!r} is an ONNX graph and shows its scores only; take its package.")
        if self.card.architecture == "ensemble":
            raise BadValueError(f"{self.card.name!r} is an ensemble: each member has features of its own; ask one.")
        return pool_features(self.net, self.prepare(x))

    def prepare(self, x: Tensor) -> Tensor:
        """Return what the network takes: windows normalised, channels second.

        Parameters
        ----------
        x
            ``(B, *window)``, as for `forward`.

        Returns
        -------
        Tensor
            ``(B, C, *space)`` float32.

        Raises
        ------
        BadShapeError
            If the windows have the wrong type, number of axes or channels.
        """
        card = self.card
        x = self._checked(x)
        channel_axis = 1 + card.axes.index("c") if "c" in card.axes else 1
        x = x if "c" in card.axes else x.unsqueeze(1)
        if channel_axis not in (1, x.ndim - 1):
            x, channel_axis = x.movedim(channel_axis, 1), 1
        return normalize(x, mean=card.mean, std=card.std, value_range=card.value_range, channel_axis=channel_axis)

    def activate(self, logits: Tensor) -> Tensor:
        """Return scores of logits ``(B, classes, …)``, by the card's temperature, activation and target scale."""
        card = self.card
        logits = logits if card.temperature == 1 else logits / card.temperature
        if card.target_std:
            logits = logits * logits.new_tensor(card.target_std) + logits.new_tensor(card.target_mean)
        if card.activation == "softmax":
            return logits.softmax(dim=1)
        return logits.sigmoid() if card.activation == "sigmoid" else logits

    def digest(self) -> str:
        """Return the SHA-256 of the weights, or of the graph of an ONNX model, in hexadecimal."""
        if isinstance(self.net, OnnxNet):
            return hashlib.sha256(self.net.graph).hexdigest()
        return digest_weights(self.state_dict())

    def _checked(self, x: Tensor) -> Tensor:
        card = self.card
        fits = x.ndim == 1 + len(card.axes)
        fits = fits and ("c" not in card.axes or x.shape[1 + card.axes.index("c")] == card.channels)
        if not fits or x.dtype != getattr(torch, card.dtype):
            raise BadShapeError(
                f"windows are {tuple(x.shape)} {str(x.dtype).removeprefix('torch.')}; model {card.name!r} expects "
                f"(B, {', '.join(map(str, card.window_shape))}) {card.dtype}, axes {card.axes!r} after the batch."
            )
        return x

    def __repr__(self) -> str:
        card = self.card
        tile, spacing = " × ".join(map(str, card.tile)), " × ".join(f"{s:g}" for s in dict.fromkeys(card.spacing))
        count = sum(p.numel() for p in self.parameters())
        size = f", {count / 1e6:.2f} M parameters" if count else ""
        return (
            f"Model {card.name!r}: {card.architecture}, {card.task} of {', '.join(card.classes)}; "
            f"tile {tile} px at {spacing} {card.unit}/px{size}"
        )

    def _repr_html_(self) -> str:
        from html import escape

        shown = (
            "classes",
            "tile",
            "spacing",
            "unit",
            "intended_use",
            "limits",
            "data",
            "base_model",
            "authors",
            "citation",
            "licence",
            "metrics",
            "version",
        )
        values = {name: value for name in shown if (value := getattr(self.card, name)) != ""}
        texts = {n: ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in values[n]) for n in shown[:3]}
        texts |= {n: ", ".join(f"{k} {v}" for k, v in values[n].items()) for n in ("metrics",)}
        cells = "".join(
            f"<tr><th style='text-align:left'>{name.replace('_', ' ')}</th>"
            f"<td style='text-align:left'>{escape(texts.get(name, str(values[name])))}</td></tr>"
            for name in values
        )
        return f"<div><b>{escape(repr(self))}</b><table>{cells}</table></div>"


def digest_weights(weights: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of tensors by name, in hexadecimal, whatever their device and order."""
    total = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def create_model(
    name: str,
    classes: Sequence[str],
    *,
    tile: int | Sequence[int],
    spacing: float | Sequence[float],
    task: str | None = None,
    encoder: str | None = None,
    pretrained: bool | str | os.PathLike[str] = False,
    unit: str = "µm",
    axes: str = "yxc",
    channels: int | None = None,
    dtype: str = "uint8",
    value_range: tuple[float, float] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    seed: int = 0,
    **options: Any,
) -> Model:
    """Make a model to train.

    Parameters
    ----------
    name
        ``"unet"`` and ``"cnn"``: compact networks for signals, pictures and volumes. ``"attention-mil"``: bags of
        instances, axes ``"ic"``. ``"filter-bank"``: Gaussian features of each pixel and a small perceptron, of which
        `Learner` makes its models; ``"embedding"``: the same with the feature maps of an encoder. Any network of
        torchvision or timm for pictures: ``"resnet18"``, ``"torchvision/resnet18"``, ``"timm/convnext_tiny"``;
        torchvision comes first where both know a name.
    classes
        Class names, of a regression the names of its numbers. Of several, one is right (softmax), unless the task is
        ``"multilabel"`` (sigmoids); one alone is scored by a sigmoid.
    tile
        Window size in pixels at `spacing`; one number counts for all window axes. Of a bag, the number of instances
        that an example has.
    spacing
        Physical pixel size to look at, in `unit`; one number counts for all window axes.
    task
        ``"segmentation"``, ``"classification"``, ``"multilabel"`` or ``"regression"``; None is segmentation for
        ``"unet"``, ``"filter-bank"`` and ``"embedding"``, else classification. A network of torchvision or timm becomes
        the encoder of a U-Net for segmentation.
    encoder
        With ``"unet"``: the network of torchvision or timm on its way down, at any size of window.
    pretrained
        What to start from. True: the network's published weights, if they lie in the cache of torch or of the Hugging
        Face hub, those of a tag if the name has one (``"resnet50.IMAGENET1K_V2"``); nothing is ever downloaded. A
        path: a package, or a ``.safetensors`` file of the network. The body is taken, and the head if the classes fit.
    unit
        Unit of `spacing`.
    axes
        Axis letters of a window as stored: ``"yxc"`` slide, ``"zyx"`` volume, ``"ct"`` signal, ``"ic"`` bag.
    channels
        Number of channels; None is 3 with an axis ``c`` and 1 without.
    dtype
        Stored type of a window.
    value_range
        Stored values that become 0 and 1, for example Hounsfield units ``(-1000, 1000)``; None is what a pretrained
        package is used to, else the range of the type (0 to 1 for float32). Signed integers have no such default.
    mean
        Mean per channel, in 0..1; None is what pretrained weights are used to, else 0.5 (of a bag 0).
    std
        Standard deviation per channel, in 0..1; None is what pretrained weights are used to, else 0.25 (of a bag
        1).
    seed
        Seed of the initial weights.
    **options
        Options of the network: ``width``, ``depth`` (compact ones), ``dropout``.

    Returns
    -------
    Model
        With weights that depend on `seed` and `pretrained` alone; torch's own random state stays as it is.

    Raises
    ------
    UnknownNameError
        If there is no network of this name.
    BadValueError
        If something is out of range or does not fit the network, or if `pretrained` belongs to another one.
    NotFoundError
        If the pretrained weights are not there.
    MissingDependencyError
        If a network needs torchvision or timm and these do not load.
    """
    architecture, task, options = _choose(name, task, encoder, options)
    if (axes == "ic") != (architecture == "attention-mil"):
        raise BadValueError(f"{name!r} with axes {axes!r}; bags, axes 'ic', are for 'attention-mil' and for it alone.")
    ndim = len(axes.replace("c", ""))
    count = channels if channels is not None else 3 if "c" in axes else 1
    sizes = (tile,) * ndim if isinstance(tile, int) else tuple(tile)
    with torch.random.fork_rng(devices=[]):
        start = _find_start(pretrained, encoder or name, tuple(classes), sizes)
    value_range = value_range or start.ranges.get(dtype) or RANGES.get(dtype, (0.0, 1.0))
    if value_range is None:
        raise BadValueError(f"{dtype} has no range of its own; give value_range=(low, high), as in (-1000, 1000).")
    card = ModelCard(
        name=name,
        architecture=architecture,
        task=task,
        classes=tuple(classes),
        tile=sizes,
        spacing=(float(spacing),) * ndim if isinstance(spacing, (int, float)) else tuple(spacing),
        unit=unit,
        axes=axes,
        dtype=dtype,
        value_range=value_range,
        mean=tuple(mean) if mean is not None else _spread(start.mean, count, 0.0 if axes == "ic" else 0.5),
        std=tuple(std) if std is not None else _spread(start.std, count, 1.0 if axes == "ic" else 0.25),
        activation="sigmoid" if len(classes) == 1 and TASKS[task].exclusive else TASKS[task].activation,
        architecture_options=options,
        base_model=start.origin,
    )
    if channels is not None and card.channels != channels:
        raise BadValueError(f"{card.channels} means for {channels} channels; expected one each.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_model(card)
    _check_window(model)
    if start.weights:
        take_over(model.net, start.weights, head=start.head, origin=start.origin)
    return model


@dataclass(frozen=True)
class _Start:
    """Weights to start from, what their network is used to, and whether their classes are the wanted ones."""

    weights: Mapping[str, Tensor] = field(default_factory=dict)
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # values that become 0 and 1, by dtype
    head: bool = False
    origin: str = ""


def _choose(
    name: str, task: str | None, encoder: str | None, options: dict[str, Any]
) -> tuple[str, str, dict[str, Any]]:
    """Return architecture, task and options of a network by the name and task that a person gave."""
    if task is not None and task not in TASKS:
        raise UnknownNameError(f"no task {task!r}.{suggest(task, TASKS)}")
    if encoder is not None and name != "unet":
        raise BadValueError(f"{name!r} with encoder {encoder!r}; an encoder is for 'unet'.")
    if name in NETWORKS:
        made = NETWORKS[name]
        dense = issubclass(made, Network) and made.dense
        fitting = [t for t in TASKS if TASKS[t].dense == dense]
        if task not in (None, *fitting):
            raise BadValueError(f"{name!r} does {', '.join(fitting)}; got task {task!r}. Choose another model.")
        options = options if encoder is None else {"encoder": str(find_source(encoder)), **options}
        return name, task or fitting[0], options
    source = str(find_source(name, known=tuple(NETWORKS)))
    if task == "segmentation":
        return "unet", task, {"encoder": source, **options}
    return source, task or "classification", options


def _find_start(
    pretrained: bool | str | os.PathLike[str], network: str, classes: tuple[str, ...], tile: tuple[int, ...]
) -> _Start:
    """Read what a model shall start from."""
    if pretrained is False:
        return _Start()
    if pretrained is True:
        if network in NETWORKS:
            raise BadValueError(f"{network!r} has no published weights; pass pretrained=<a package or .safetensors>.")
        found = find_published(find_source(network))
        return _Start(found.read(tile), found.mean, found.std, origin=str(found))
    path = Path(pretrained).expanduser()
    if path.is_dir():
        model = load_model(path)
        card = model.card
        return _Start(
            model.state_dict(),
            card.mean,
            card.std,
            ranges={card.dtype: card.value_range},
            head=card.classes == classes,
            origin=f"{card.name} {card.version}, weights {model.digest()[:12]}",
        )
    if not path.exists():
        raise NotFoundError(f"nothing at {path}; pretrained= takes a package, a .safetensors file, or True.")
    if path.suffix != ".safetensors":
        raise BadFileError(f"{path.name} is no .safetensors file and no package; pickled weights are not opened.")
    weights = read_weights(path)
    return _Start(weights, head=True, origin=f"{path.name}, weights {digest_weights(weights)[:12]}")


def _spread(values: tuple[float, ...], count: int, otherwise: float) -> tuple[float, ...]:
    """Return a value per channel: those given, their mean where the channels are others, or a default."""
    if not values:
        return (otherwise,) * count
    return values if len(values) == count else (sum(values) / len(values),) * count


def _check_window(model: Model) -> None:
    """Follow the shapes of one window through the network, without computing, and refuse a tile that it cannot take."""
    card, net = model.card, model.net
    tensors = {name: tensor.to("meta") for name, tensor in (*net.named_parameters(), *net.named_buffers())}
    window = torch.empty(1, card.channels, *card.tile, device="meta")
    net.eval()
    try:
        with torch.no_grad():
            got = tuple(torch.func.functional_call(net, tensors, (window,)).shape)
    except NotImplementedError:
        return  # an operation that knows no shapes alone
    except (AssertionError, IndexError, RuntimeError, ValueError) as error:
        raise BadValueError(
            f"{card.architecture} cannot take a window of {' × '.join(map(str, card.tile))} px: {error}"
        ) from error
    finally:
        net.train()
    if got != (1, *card.output_shape):
        raise BadValueError(f"{card.architecture} gives {got} for one window; expected {(1, *card.output_shape)}.")


def load_model(
    path: str | os.PathLike[str], *, card: ModelCard | Mapping[str, Any] | str | os.PathLike[str] | None = None
) -> Model:
    """Load a model package, or an ONNX file from elsewhere with a card. Nothing in a file is ever run as code.

    Parameters
    ----------
    path
        Package folder, as `export` wrote it, or an ``.onnx`` file.
    card
        What an ONNX file wants and gives: a card, its fields, or a JSON file of them. A package brings its own.

    Returns
    -------
    Model
        Ready to predict (in evaluation mode).

    Raises
    ------
    NotFoundError
        If there is nothing at `path`, or the package lacks a file.
    BadFileError
        If a file is damaged, altered, of a newer format, or an ONNX graph that cannot run.
    BadShapeError
        If an ONNX graph's input or output does not fit the card.
    BadValueError
        If a card is needed and missing, or holds what it should not.
    """
    location = Path(path).expanduser()
    if not location.exists():
        raise NotFoundError(f"nothing at {location}; expected a model package (a folder) or an .onnx file.")
    if location.is_dir():
        if card is not None:
            raise BadValueError(f"{location.name} is a package and brings its own card; leave out card=….")
        return _load_package(location).eval()
    if location.suffix.lower() != ".onnx":
        raise BadFileError(
            f"{location.name}: expected a package folder or an .onnx file. Formats that run code when they are "
            "read (pickles: .pt, .pth, .bin) are not taken; convert to ONNX or safetensors."
        )
    if card is None:
        raise BadValueError(f"{location.name} is ONNX: say what it wants with card=… (a card, fields, or a JSON).")
    return _load_onnx(location, _as_card(card)).eval()


def build_model(card: ModelCard) -> Model:
    """Make the model that a card describes, without trained weights.

    Parameters
    ----------
    card
        What the model wants and gives.

    Raises
    ------
    UnknownNameError
        If there is no such network.
    BadValueError
        If an option does not fit the network.
    """
    return Model(_build(card), card)


def _build(card: ModelCard) -> nn.Module:
    if card.architecture == "ensemble":
        from dhlab.ensembles import build_ensemble

        return build_ensemble(card)
    net = build_network(
        card.architecture,
        card.architecture_options,
        channels=card.channels,
        classes=len(card.classes),
        tile=card.tile,
    )
    # Convolutions over interleaved pixels are fastest in the memory order in which readers give them.
    if len(card.window_axes) == 2:
        for parameter in net.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return net


def _load_package(folder: Path) -> Model:
    from safetensors import SafetensorError
    from safetensors.torch import load

    config = _read_json(folder / CONFIG, "the package's configuration")
    version = config.get("format_version")
    if not isinstance(version, int):
        raise BadFileError(f"{folder / CONFIG} states no format_version; expected a package that export() wrote.")
    if version > FORMAT_VERSION:
        raise BadFileError(
            f"package {folder.name!r} has format {version}; this dhlab reads up to {FORMAT_VERSION}. Upgrade dhlab."
        )
    card = _card_of(config.get("card"), folder / CONFIG)
    sums = config.get("sha256")
    if not isinstance(sums, dict) or WEIGHTS not in sums:
        raise BadFileError(f"{folder / CONFIG} lists no checksum of {WEIGHTS}; expected a package of export().")
    contents = {name: _checked_bytes(folder, name, str(expected)) for name, expected in sums.items()}
    try:
        weights = load(contents[WEIGHTS])
        model = build_model(card)
        model.load_state_dict(weights)
    except (SafetensorError, RuntimeError, KeyError) as error:
        raise BadFileError(f"{folder / WEIGHTS} does not fit the card: {error}") from error
    return model


def _checked_bytes(folder: Path, name: str, expected: str) -> bytes:
    if Path(name).name != name:
        raise BadFileError(f"{folder / CONFIG} names {name!r}; expected files of the package itself.")
    if not (folder / name).is_file():
        raise NotFoundError(f"package {folder.name!r} lacks {name}; copy it again from its source.")
    content = (folder / name).read_bytes()
    got = hashlib.sha256(content).hexdigest()
    if got != expected:
        raise BadFileError(
            f"{folder / name} was altered or damaged: SHA-256 {got[:12]}…, its package says {expected[:12]}…. "
            "Copy it again from its source."
        )
    return content


def _read_json(path: Path, what: str) -> dict[str, Any]:
    if not path.is_file():
        raise NotFoundError(f"no {path.name} in {path.parent}; expected {what}.")
    if path.stat().st_size > LARGEST_CONFIG:
        raise BadFileError(f"{path} is larger than {LARGEST_CONFIG >> 20} MiB; expected {what}.")
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise BadFileError(f"{path} is no JSON ({error}); expected {what}.") from error
    if not isinstance(values, dict):
        raise BadFileError(f"{path} holds a {type(values).__name__}; expected {what}, a table.")
    return values


def _as_card(card: ModelCard | Mapping[str, Any] | str | os.PathLike[str]) -> ModelCard:
    if isinstance(card, ModelCard):
        return card
    if not isinstance(card, (str, os.PathLike)):
        return ModelCard.from_dict(card)
    path = Path(card).expanduser()
    values = _read_json(path, "a model card")
    return _card_of(values.get("card", values), path)


def _card_of(values: Any, path: Path) -> ModelCard:
    try:
        return ModelCard.from_dict(values)
    except BadValueError as error:
        raise BadFileError(f"{path}: {error}") from error


def _load_onnx(path: Path, card: ModelCard) -> Model:
    net = open_onnx(path)
    _check_graph(net, card, path)
    model = Model(net, card)
    try:
        shape = tuple(model(torch.zeros((1, *card.window_shape), dtype=getattr(torch, card.dtype))).shape)
    except BadFileError as error:
        raise BadShapeError(f"{path} fails on one window of the card: {error}") from error
    if shape != (1, *card.output_shape):
        raise BadShapeError(
            f"{path} gives {shape} for one window; the card ({card.task}, {len(card.classes)} classes, output_stride "
            f"{card.output_stride}) expects {(1, *card.output_shape)}."
        )
    return model


def _check_graph(net: OnnxNet, card: ModelCard, path: Path) -> None:
    inputs = net.session.get_inputs()
    if len(inputs) != 1:
        raise BadShapeError(f"{path} has {len(inputs)} inputs ({', '.join(i.name for i in inputs)}); expected one.")
    got = inputs[0]
    if card.input_layout == "window":
        kind, shape = {"float32": "float"}.get(card.dtype, card.dtype), card.window_shape
    else:
        kind, shape = "float", (card.channels, *card.tile)
    sizes = got.shape[1:]
    fits = len(sizes) == len(shape) and all(not isinstance(a, int) or a == b for a, b in zip(sizes, shape, strict=True))
    batch = got.shape[0] if got.shape else 0
    if not fits or (isinstance(batch, int) and batch != 1) or got.type != f"tensor({kind})":
        raise BadShapeError(
            f"{path} takes {got.type} {got.shape}; a card with input_layout {card.input_layout!r}, axes {card.axes!r} "
            f"and tile {card.tile} expects tensor({kind}) {['batch', *shape]}. Mend the card or export the graph anew."
        )
