"""Published weights of torchvision's and timm's networks, as far as they lie in those libraries' caches."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dhlab.errors import NotFoundError
from dhlab.networks.catalogue import Source, load_library, timm_size
from dhlab.networks.weights import read_weights

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = ["Published", "find_published"]

READABLE = (".safetensors", ".pth", ".bin", ".pt")
# How the published DenseNets name their layers.
OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\.")
# torchvision lets these scale their input anew, from ImageNet's mean to this one.
HALF = ("googlenet", "inception_v3")


@dataclass(frozen=True)
class Published:
    """Weights that a library offers, in a local file.

    Parameters
    ----------
    source
        The network, and which of its weights.
    path
        The file.
    mean
        Mean per channel of what the network learned from, in 0..1.
    std
        Standard deviation per channel, in 0..1.
    """

    source: Source
    path: Path
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __str__(self) -> str:
        return f"{self.source}.{self.source.tag} ({self.path.name})"

    def read(self, tile: Sequence[int]) -> dict[str, Tensor]:
        """Return the tensors under the names of the library's network.

        Parameters
        ----------
        tile
            Height and width of a window in pixels, for networks that are built for one size.

        Returns
        -------
        dict
            Tensors by name, on the CPU.

        Raises
        ------
        BadFileError
            If the file is damaged, or holds more than tensors.
        """
        weights = read_weights(self.path)
        if self.source.library == "torchvision":
            return {OLD_DENSENET.sub(r"\1\2.", name): tensor for name, tensor in weights.items()}
        # timm knows how weights of other projects are named in its networks.
        overlay = {"state_dict": weights, "custom_load": False}
        name = f"{self.source.name}.{self.source.tag}"
        options = {"pretrained_cfg_overlay": overlay, **timm_size(self.source, tile)}
        return dict(load_library("timm").create_model(name, pretrained=True, **options).state_dict())


def find_published(source: Source) -> Published:
    """Find a network's published weights in the caches of torch and the Hugging Face hub; nothing is downloaded.

    Parameters
    ----------
    source
        The network, and which of its weights; without a tag the library's own choice, then whichever is there.

    Returns
    -------
    Published
        Weights in a file.

    Raises
    ------
    NotFoundError
        If they are not there; the message says which files were looked for.
    """
    offers = _torchvision_offers(source) if source.library == "torchvision" else _timm_offers(source)
    for tag, places, facts in offers:
        for place in places:
            if place.is_file():
                return Published(Source(source.library, source.name, tag), place, facts["mean"], facts["std"])
    wanted = [str(place) for _, places, _ in offers for place in places]
    if not wanted:
        raise NotFoundError(f"{source} has no published weights; start at random, or pass pretrained=<a file>.")
    raise NotFoundError(
        f"no published weights of {source} on this machine; looked for {' or '.join(wanted[:2])}"
        f"{' …' if wanted[2:] else ''}. dhlab downloads nothing: fetch them "
        "where there is a network, copy them to this place, or pass pretrained=<a .safetensors file or a package>."
    )


_Offer = tuple[str, list[Path], dict[str, Any]]


def _torchvision_offers(source: Source) -> list[_Offer]:
    known = load_library("torchvision").get_model_weights(source.name)
    chosen = [known[source.tag]] if source.tag else list(dict.fromkeys((known.DEFAULT, *known)))
    offers = []
    for weights in chosen:
        preset = weights.transforms()
        half = source.name in HALF
        facts = {"mean": (0.5,) * 3 if half else tuple(preset.mean), "std": (0.5,) * 3 if half else tuple(preset.std)}
        offers.append((weights.name, [_checkpoints() / Path(weights.url).name], facts))
    return offers


def _timm_offers(source: Source) -> list[_Offer]:
    timm = load_library("timm")
    full = [f"{source.name}.{source.tag}"] if source.tag else timm.list_pretrained(f"{source.name}.*")
    configurations = {name: timm.get_pretrained_cfg(name) for name in full}
    default = timm.get_pretrained_cfg(source.name)
    first = sorted(configurations.items(), key=lambda item: default is None or item[1].tag != default.tag)
    return [(c.tag, _timm_places(c), {"mean": tuple(c.mean), "std": tuple(c.std)}) for _, c in first]


def _timm_places(configuration: Any) -> list[Path]:
    from huggingface_hub import constants, try_to_load_from_cache

    places = []
    if configuration.hf_hub_id:
        name = configuration.hf_hub_filename or "model.safetensors"
        cached = try_to_load_from_cache(configuration.hf_hub_id, name)
        folder = Path(constants.HF_HUB_CACHE, f"models--{configuration.hf_hub_id.replace('/', '--')}", "snapshots")
        places.append(Path(cached) if isinstance(cached, str) else folder / "<revision>" / name)
    if configuration.url:
        places.append(_checkpoints() / Path(configuration.url).name)
    return [place for place in places if place.suffix in READABLE]


def _checkpoints() -> Path:
    return Path(torch.hub.get_dir(), "checkpoints")
