"""Weights to start from: caches that the test makes, files and packages; never a download."""

from __future__ import annotations

import pickle
import socket
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

from dhlab.errors import BadFileError, BadValueError, NotFoundError
from dhlab.models import Model, create_model
from dhlab.networks import find_published, find_source
from dhlab.packaging import export

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give torch and the Hugging Face hub empty caches, and take the network away."""
    from huggingface_hub import constants

    def refuse(*_):
        raise AssertionError("something tried to reach the network")

    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "torch"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return tmp_path


class Payload:
    """What makes a file appear when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return (Path.touch, (self.file,))


def save_tensors(model: Model, file: Path) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, file)
    return file


def torchvision_weights(name: str, file: Path, seed: int = 5) -> dict[str, torch.Tensor]:
    """Write weights as torchvision publishes them: a whole ImageNet network in a ``.pth``."""
    torch.manual_seed(seed)
    weights = torchvision.models.get_model(name, weights=None).state_dict()
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(weights, file)
    return weights


def timm_weights(name: str, folder: Path) -> dict[str, torch.Tensor]:
    """Write weights as the hub's cache keeps them."""
    torch.manual_seed(6)
    weights = timm.create_model(name.partition(".")[0]).state_dict()
    snapshot = folder / "hub" / f"models--timm--{name}" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    save_file(weights, snapshot / "model.safetensors")
    return weights


def test_torchvisions_cache(caches: Path) -> None:
    file = caches / "torch" / "checkpoints" / "resnet18-f37072fd.pth"
    weights = torchvision_weights("resnet18", file)
    model = create_model("resnet18", ["a", "b"], tile=33, spacing=0.5, pretrained=True)
    assert (model.card.mean, model.card.std) == IMAGENET
    assert "resnet18.IMAGENET1K_V1" in model.card.base_model
    own = model.net.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in weights.items() if not name.startswith("fc."))
    assert own["fc.weight"].shape == (2, 512)
    mine = create_model("resnet18", ["a"], tile=33, spacing=0.5, pretrained=True, mean=(0.1,) * 3, std=(0.2,) * 3)
    assert mine.card.mean == (0.1,) * 3


def test_other_weights_where_the_default_is_not_there(caches: Path) -> None:
    old = torchvision.models.ResNet50_Weights.IMAGENET1K_V1
    torchvision_weights("resnet50", caches / "torch" / "checkpoints" / Path(old.url).name)
    assert find_published(find_source("resnet50")).source.tag == "IMAGENET1K_V1"
    with pytest.raises(NotFoundError, match=r"resnet50-11ad3fa6\.pth"):
        find_published(find_source("resnet50.IMAGENET1K_V2"))


def test_what_torchvision_scales_anew_is_used_to_other_means(caches: Path) -> None:
    known = torchvision.models.GoogLeNet_Weights.DEFAULT
    file = caches / "torch" / "checkpoints" / Path(known.url).name
    file.parent.mkdir(parents=True)
    save_file({}, file)
    found = find_published(find_source("googlenet"))
    x = torch.rand(1, 3, 5, 5)
    net = torchvision.models.googlenet(transform_input=True, aux_logits=False, init_weights=False)
    theirs = net._transform_input(
        (x - torch.tensor(IMAGENET[0]).view(3, 1, 1)) / torch.tensor(IMAGENET[1]).view(3, 1, 1)
    )
    torch.testing.assert_close((x - found.mean[0]) / found.std[0], theirs)


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_grey_gives_what_it_gave_with_other_channels(caches: Path, channels: int) -> None:
    torchvision_weights("resnet18", caches / "torch" / "checkpoints" / "resnet18-f37072fd.pth")
    three = create_model("resnet18", ["a"], tile=33, spacing=1.0, pretrained=True)
    other = create_model("resnet18", ["a"], tile=33, spacing=1.0, pretrained=True, channels=channels)
    assert other.card.mean == pytest.approx((sum(IMAGENET[0]) / 3,) * channels)
    grey = torch.rand(1, 1, 33, 33)
    with torch.no_grad():
        expected = three.net.conv1(grey.expand(-1, 3, -1, -1))
        torch.testing.assert_close(other.net.conv1(grey.expand(-1, channels, -1, -1)), expected, rtol=1e-4, atol=1e-5)


def test_the_hubs_cache_for_a_classifier_and_an_encoder(caches: Path) -> None:
    weights = timm_weights("resnet10t.c3_in1k", caches)
    before = torch.random.get_rng_state()
    model = create_model("timm/resnet10t", ["a"], tile=33, spacing=0.5, pretrained=True)
    assert torch.equal(model.net.state_dict()["layer4.0.conv1.weight"], weights["layer4.0.conv1.weight"])
    assert "timm/resnet10t.c3_in1k" in model.card.base_model
    unet = create_model("unet", ["a"], tile=33, spacing=0.5, encoder="timm/resnet10t", pretrained=True)
    own = unet.net.state_dict()
    assert torch.equal(own["encoder.model.layer1.0.conv1.weight"], weights["layer1.0.conv1.weight"])
    assert torch.equal(own["encoder.model.layer1.0.bn1.running_mean"], weights["layer1.0.bn1.running_mean"])
    assert (unet.card.mean, unet.card.std) == IMAGENET
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_transformers_positions_are_resampled(caches: Path) -> None:
    weights = timm_weights("vit_tiny_patch16_224.augreg_in21k_ft_in1k", caches)
    model = create_model("timm/vit_tiny_patch16_224", ["a"], tile=48, spacing=0.5, pretrained=True)
    assert model.net.pos_embed.shape == (1, 10, 192)
    assert torch.equal(model.net.pos_embed[:, 0], weights["pos_embed"][:, 0])
    assert model.card.mean == (0.5, 0.5, 0.5)


def test_densenets_old_names(caches: Path) -> None:
    known = torchvision.models.DenseNet121_Weights.DEFAULT
    file = caches / "torch" / "checkpoints" / Path(known.url).name
    weights = torchvision_weights("densenet121", file)
    parts = ("norm1", "norm2", "conv1", "conv2")
    old = {}
    for name, tensor in weights.items():
        for part in parts if "denselayer" in name else ():
            name = name.replace(f".{part}.", f".{part[:-1]}.{part[-1]}.")
        old[name] = tensor
    torch.save(old, file)
    unet = create_model("densenet121", ["a"], tile=33, spacing=1.0, task="segmentation", pretrained=True)
    name = "features.denseblock1.denselayer1.norm1.weight"
    assert torch.equal(unet.net.state_dict()[f"encoder.{name}"], weights[name])


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("resnet18", r"checkpoints/resnet18-f37072fd\.pth.*downloads nothing"),
        ("timm/resnet10t", r"models--timm--resnet10t\.c3_in1k/snapshots/<revision>/model\.safetensors"),
        ("timm/resnet18.tv_in1k", r"resnet18\.tv_in1k"),
        ("timm/coatnet_0_224", "has no published weights"),
    ],
)
def test_says_which_file_is_wanted(name: str, match: str) -> None:
    with pytest.raises(NotFoundError, match=match):
        create_model(name, ["a"], tile=33, spacing=1.0, pretrained=True)


def test_a_pickle_in_the_cache_is_not_run(caches: Path) -> None:
    file = caches / "torch" / "checkpoints" / "resnet18-f37072fd.pth"
    file.parent.mkdir(parents=True)
    payload = Payload(caches / "ran")
    torch.save({"fc.weight": payload}, file)
    with pytest.raises(BadFileError, match="cannot be read"):
        create_model("resnet18", ["a"], tile=33, spacing=1.0, pretrained=True)
    file.write_bytes(pickle.dumps(payload, protocol=2))
    with pytest.raises(BadFileError, match="cannot be read"):
        create_model("resnet18", ["a"], tile=33, spacing=1.0, pretrained=True)
    assert not (caches / "ran").exists()


def test_a_package_gives_body_and_habits_and_its_head_if_the_classes_fit(tmp_path: Path) -> None:
    settings = {"tile": 16, "spacing": 1.0, "width": 4}
    first = create_model("unet", ["a", "b"], seed=3, mean=(0.7, 0.6, 0.5), std=(0.1, 0.2, 0.3), **settings)
    folder = export(first, tmp_path / "p")
    same = create_model("unet", ["a", "b"], pretrained=folder, **settings)
    assert same.digest() == first.digest()
    assert (same.card.mean, same.card.std) == (first.card.mean, first.card.std)
    assert first.digest()[:12] in same.card.base_model
    for classes in (["a", "c"], ["a"]):
        other = create_model("unet", classes, pretrained=folder, **settings)
        own, theirs = other.net.state_dict(), first.net.state_dict()
        assert all(torch.equal(own[name], theirs[name]) for name in own if not name.startswith("head."))
        assert not torch.equal(own["head.weight"][:1], theirs["head.weight"][:1])


def test_a_volumes_package_gives_its_range(tmp_path: Path) -> None:
    settings = {"tile": (5, 9, 9), "spacing": 1.0, "axes": "zyx", "dtype": "int16", "width": 4, "depth": 2}
    folder = export(create_model("cnn", ["a"], value_range=(-1000, 400), **settings), tmp_path / "p")
    assert create_model("cnn", ["b"], pretrained=folder, **settings).card.value_range == (-1000, 400)
    assert create_model("cnn", ["b"], pretrained=folder, **settings | {"dtype": "uint8"}).card.value_range == (0, 255)


def test_a_classifiers_package_for_an_encoder(tmp_path: Path) -> None:
    first = create_model("resnet18", ["a", "b"], tile=33, spacing=1.0, seed=3)
    file = save_tensors(first, tmp_path / "w.safetensors")
    unet = create_model("resnet18", ["x"], tile=33, spacing=1.0, task="segmentation", pretrained=file)
    assert torch.equal(unet.net.encoder.layer3[0].conv1.weight, first.net.layer3[0].conv1.weight)
    again = create_model("resnet18", ["u", "v"], tile=33, spacing=1.0, pretrained=str(file))
    assert again.digest() == first.digest()
    assert "w.safetensors" in again.card.base_model


def test_refuses_what_does_not_belong(tmp_path: Path) -> None:
    cnn = create_model("cnn", ["a"], tile=16, spacing=1.0, width=4)
    save_tensors(cnn, tmp_path / "w.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"\xff" * 100)
    (tmp_path / "w.pth").write_bytes(b"x")
    for name, pretrained, error, match in (
        ("unet", tmp_path / "w.safetensors", BadValueError, "belongs to another network"),
        ("cnn", tmp_path / "broken.safetensors", BadFileError, "cannot be read"),
        ("cnn", tmp_path / "w.pth", BadFileError, "pickled"),
        ("cnn", tmp_path / "none", NotFoundError, "nothing at"),
        ("cnn", True, BadValueError, "no published weights"),
    ):
        with pytest.raises(error, match=match):
            create_model(name, ["a"], tile=16, spacing=1.0, pretrained=pretrained)
    with pytest.raises(BadValueError, match=r"shape \(4, 3, 3, 3\); expected \(8, 3, 3, 3\)"):
        create_model("cnn", ["a"], tile=16, spacing=1.0, width=8, pretrained=tmp_path / "w.safetensors")
