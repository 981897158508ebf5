"""Bags: slides as embedded windows, kept in a file, and attention back on the slide."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

import dhlab as dh
from dhlab.datasets import Dataset
from dhlab.errors import BadFileError, BadShapeError, BadValueError, NotFoundError, StorageError
from dhlab.mil import Bag, attention, embed
from dhlab.models import Model, create_model, load_model
from dhlab.packaging import export
from dhlab.scan import Scan


@pytest.fixture(scope="module")
def slide() -> Scan:
    """A picture of 83 × 131 px at 0.5 µm whose windows of 16 px all differ."""
    pixels = np.random.default_rng(0).integers(0, 256, (83, 131, 3)).astype(np.uint8)
    return Scan.from_array(pixels, "yxc", spacing=0.5, unit="µm", name="slide <7>")


@pytest.fixture(scope="module")
def encoder() -> Model:
    return create_model("cnn", ["a", "b"], tile=16, spacing=0.5, width=4, depth=2)


@pytest.fixture(scope="module")
def bag(slide: Scan, encoder: Model) -> Bag:
    return embed(encoder, slide, progress=False)


def judge(bag: Bag) -> Model:
    model = create_model(
        "attention-mil",
        ["benign", "malignant"],
        tile=9,
        spacing=1.0,
        unit="px",
        axes="ic",
        channels=bag.features.shape[1],
        dtype="float32",
        width=16,
    )
    with torch.no_grad():
        model.net.score.weight.mul_(500)
        model.net.embed[0].weight.mul_(5)
    return model.eval()


def test_rows_are_the_features_of_the_windows(slide: Scan, encoder: Model, bag: Bag) -> None:
    assert bag.features.shape == (6 * 9, 8)
    assert bag.features.dtype == np.float32
    assert (bag.encoder, bag.digest) == ("cnn", encoder.digest())
    assert encoder.training, "the model is lent, not changed"
    encoder.eval()
    for position in (0, 8, 53):
        window = slide.read(bag.grid[position], (16, 16))
        with torch.no_grad():
            expected = encoder.features(torch.from_numpy(window)[None])[0]
        torch.testing.assert_close(torch.from_numpy(bag.features[position]), expected, rtol=1e-5, atol=1e-6)
    encoder.train()


def test_batches_and_masks_change_no_row(slide: Scan, encoder: Model, bag: Bag) -> None:
    few = embed(encoder, slide, batch_size=7, progress=False)
    np.testing.assert_allclose(few.features, bag.features, rtol=1e-5, atol=1e-6)
    mask = np.zeros((83, 131), np.uint8)
    mask[:20, :40] = 1
    part = embed(encoder, slide, within=Scan.from_array(mask, "yx", spacing=0.5, kind="mask"), progress=False)
    assert part.grid.indices.tolist() == [0, 1, 2, 9, 10, 11]
    np.testing.assert_allclose(part.features, bag.features[[0, 1, 2, 9, 10, 11]], rtol=1e-5, atol=1e-6)


def test_a_volume_too() -> None:
    model = create_model("unet", ["a"], tile=(4, 8, 8), spacing=1.0, axes="zyx", width=4, depth=2, unit="mm")
    volume = Scan.from_array(np.random.default_rng(0).integers(0, 255, (9, 17, 8), np.uint8), "zyx", unit="mm")
    bag = embed(model, volume, progress=False)
    assert bag.features.shape == (3 * 3 * 1, 8)
    heat = attention(judge(bag), bag)
    assert (heat.axes, heat.shape) == ("czyx", (3, 3, 1))


def test_refuses(slide: Scan, encoder: Model, bag: Bag, tmp_path: Path) -> None:
    empty = Scan.from_array(np.zeros((83, 131), np.uint8), "yx", spacing=0.5, kind="mask", name="no tissue")
    for error, match, action in (
        (BadValueError, "no tissue", lambda: embed(encoder, slide, within=empty, progress=False)),
        (BadValueError, "batch_size 0", lambda: embed(encoder, slide, batch_size=0, progress=False)),
        (BadShapeError, "axes", lambda: embed(encoder, Scan.from_array(np.zeros((8, 8, 8), np.uint8), "zyx"))),
        (BadValueError, "weighs no instances", lambda: attention(encoder, bag)),
        (BadShapeError, "expects", lambda: attention(judge(bag), replace(bag, features=bag.features[:, :5]))),
        (BadShapeError, "one each", lambda: replace(bag, features=bag.features[:5])),
        (BadShapeError, "float32", lambda: replace(bag, features=bag.features.astype(np.float64))),
        (BadValueError, "not all finite", lambda: replace(bag, features=np.full_like(bag.features, np.nan))),
        (BadValueError, "safetensors", lambda: bag.save(tmp_path / "bag.npz")),
        (NotFoundError, "no bag", lambda: Bag.load(tmp_path / "none.safetensors")),
    ):
        with pytest.raises(error, match=match):
            action()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises((NotFoundError, StorageError)):
        bag.save(tmp_path / "none" / "bag.safetensors")


def test_returns_from_its_file(bag: Bag, tmp_path: Path) -> None:
    again = Bag.load(bag.save(tmp_path / "a bag é.safetensors"))
    assert np.array_equal(again.features, bag.features)
    assert np.array_equal(again.grid.indices, bag.grid.indices)
    assert list(again.grid) == list(bag.grid)
    for name in ("axes", "parent", "encoder", "digest", "name"):
        assert getattr(again, name) == getattr(bag, name), name
    assert np.array_equal(attention(judge(again), again).levels[0], attention(judge(bag), bag).levels[0])


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"format_version": 99}, "Upgrade dhlab"),
        ({"grid": {}}, "no bag"),
        ({"parent": None}, "no bag"),
        ({"parent": {"name": "x", "evil": 1}}, "no bag"),
        (
            {"grid": {"tile": [16, 16], "stride": [0, 16], "spacing": [1, 1], "scale": [1, 1], "extent": [9, 9]}},
            "no bag",
        ),
        ({"axes": None, "name": None, "grid": [1]}, "no bag"),
    ],
)
def test_refuses_damaged_files(bag: Bag, tmp_path: Path, change: dict, match: str) -> None:
    path = bag.save(tmp_path / "b.safetensors")
    from safetensors import safe_open

    with safe_open(path, "numpy") as file:
        facts = json.loads(file.metadata()["bag"])
    tensors = load_file(path)
    save_file(tensors, path, {"bag": json.dumps(facts | change)})
    with pytest.raises(BadFileError, match=match):
        Bag.load(path)
    save_file(tensors | {"windows": tensors["windows"] + 1}, path, {"bag": json.dumps(facts)})
    with pytest.raises(BadFileError, match="rising indices below 54"):
        Bag.load(path)
    save_file(tensors, path)
    with pytest.raises(BadFileError, match="no bag"):
        Bag.load(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(BadFileError, match="no bag"):
        Bag.load(path)


@pytest.mark.parametrize("overlap", [0.0, 0.5])
def test_attention_lies_where_its_window_lies(slide: Scan, encoder: Model, overlap: float) -> None:
    bag = embed(encoder, slide, overlap=overlap, progress=False)
    model = judge(bag)
    heat = attention(model, bag)
    assert (heat.kind, heat.axes, heat.channels, heat.unit) == ("heatmap", "cyx", ("attention",), "µm")
    assert heat.parent == slide.as_parent()
    assert heat.shape == bag.grid.shape
    pixels = np.asarray(heat.levels[0])
    assert pixels.dtype == np.uint8
    assert pixels.max() == 255
    with torch.no_grad():
        weights = model.net.attention(model.prepare(torch.from_numpy(bag.features)[None]))[0].numpy()
    best = int(weights.argmax())
    assert heat.meta["highest_attention"] == pytest.approx(weights.max())
    row, column = np.unravel_index(pixels[0].argmax(), heat.shape)
    centre = np.asarray(heat.origin) + (np.array([row, column]) + 0.5) * heat.spacing
    window = np.asarray(bag.grid[best]) * 0.5 + 16 * 0.5 / 2
    np.testing.assert_allclose(centre, window)


def test_the_heat_map_has_the_frame_of_a_classifiers(slide: Scan, encoder: Model, bag: Bag) -> None:
    """What takes a heat map of `predict` takes this one: same frame, and it is shown and outlined."""
    theirs, ours = dh.predict(encoder, slide, overlap=0.0, progress=False), attention(judge(bag), bag)
    for name in ("shape", "spacing", "origin", "unit", "parent", "axes", "kind"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.thumbnail(64).shape[2] == 3
    zones = dh.Annotations.from_heatmap(ours, "attention", threshold=0.5)
    assert len(zones) >= 1
    assert dh.show(slide, ours) is not None


def test_windows_outside_the_mask_get_nothing(slide: Scan, encoder: Model) -> None:
    mask = np.zeros((83, 131), np.uint8)
    mask[40:60, 40:100] = 1
    bag = embed(encoder, slide, within=Scan.from_array(mask, "yx", spacing=0.5, kind="mask"), progress=False)
    pixels = np.asarray(attention(judge(bag), bag).levels[0]).ravel()
    assert np.delete(pixels, bag.grid.indices).max() == 0
    assert pixels.max() == 255


def test_from_slide_to_package(slide: Scan, bag: Bag, tmp_path: Path) -> None:
    """Bags make a dataset, padded by it; a model of bags is trained, packaged and runs as a graph on any number."""
    few = replace(bag, features=bag.features[:7], grid=replace(bag.grid, keep=np.arange(7)))
    data = Dataset.from_bags([bag, few], [0, 1], classes=["benign", "malignant"])
    images, targets = data.batch(np.arange(2))
    assert np.isnan(images[1, 7:]).all()
    model = judge(bag)
    model.train()
    torch.nn.functional.cross_entropy(model.logits(torch.from_numpy(images)), torch.from_numpy(targets)).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    folder = export(model, tmp_path / "p")
    torchs, graphs = load_model(folder), load_model(folder / "model.onnx", card=folder / "config.json")
    for instances in (1, 54):
        x = torch.from_numpy(bag.features[None, :instances])
        with torch.no_grad():
            expected = model.eval()(x)
            torch.testing.assert_close(torchs(x), expected)
            torch.testing.assert_close(graphs(x), expected, rtol=1e-4, atol=1e-5)
    assert np.array_equal(attention(torchs, bag).levels[0], attention(model, bag).levels[0])
    with pytest.raises(BadValueError, match="weighs no instances"):
        attention(graphs, bag)


def test_shows_itself(bag: Bag) -> None:
    assert repr(bag).startswith("Bag 'slide <7>': 54 instances of 8 features from cnn")
    page = bag._repr_html_()
    assert "slide &lt;7&gt;" in page
    assert "6 × 9 windows" in page
