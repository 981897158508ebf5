"""An encoder's feature maps in place of Gaussian features: learned, mapped, saved, exported as those."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import dhlab as dh
from dhlab.annotations import Annotations
from dhlab.errors import BadShapeError, BadValueError
from dhlab.learner import Learner, draw_strokes
from dhlab.models import Model
from dhlab.phantoms import CLASSES
from dhlab.scan import Scan, halve

# Half precision; elsewhere, on the mean, maps that lie half a step beside those of another window; of 255.
TOLERANCE, ELSEWHERE = 12, 10


@pytest.fixture(scope="module")
def encoder() -> Model:
    pytest.importorskip("torchvision")
    return dh.create_model("resnet18", ["a", "b"], tile=224, spacing=1.0)


@pytest.fixture(scope="module")
def part(painted: tuple[np.ndarray, np.ndarray]) -> tuple[Scan, np.ndarray]:
    image, truth = painted[0][200:600, 200:700], painted[1][200:600, 200:700]
    levels = (image, halve(image, (0, 1)))
    return Scan(levels, "yxc", (1.0, 1.0), "µm", name="part", fill=255), truth


@pytest.fixture(scope="module")
def strokes(part: tuple[Scan, np.ndarray]) -> Annotations:
    return draw_strokes(part[1], CLASSES, 12, parent=part[0])


@pytest.fixture(scope="module")
def taught(part: tuple[Scan, np.ndarray], strokes: Annotations, encoder: Model) -> Learner:
    learner = Learner(part[0], strokes, encoder=encoder)
    learner.update()
    return learner


def test_strokes_teach_a_head_on_an_encoder(taught: Learner, part: tuple[Scan, np.ndarray]) -> None:
    heat, truth = taught.heat, part[1]
    found = np.array([CLASSES.index(name) for name in heat.channels])[heat.levels[0][...].argmax(0)]
    assert (found == truth).mean() > 0.7, "random convolutions tell glands from stroma and glass"
    assert heat.levels[1][...].shape[1:] == (200, 250)
    assert len(taught.propose(3)) == 3
    polygons = taught.polygons(classes=["stroma"], min_area=500.0)
    assert set(polygons.class_names) == {"stroma"}


def test_what_is_kept_makes_no_difference(
    taught: Learner, part: tuple[Scan, np.ndarray], strokes: Annotations, encoder: Model
) -> None:
    looked = Learner(part[0], strokes[:8], encoder=encoder)
    looked.heat.levels[0][...]
    looked.strokes = strokes
    assert looked.update()
    np.testing.assert_array_equal(looked.heat.levels[0][...], taught.heat.levels[0][...])


def test_it_is_a_model_that_holds_the_weights_of_the_encoder(
    taught: Learner, part: tuple[Scan, np.ndarray], encoder: Model, tmp_path: Path
) -> None:
    model = taught.model
    assert model.card.architecture == "embedding"
    assert model.card.mean == encoder.card.mean
    weights = encoder.net.state_dict()
    kept = {name: w for name, w in model.net.encoder.state_dict().items() if not name.endswith("num_batches_tracked")}
    assert all(torch.equal(w, weights[name]) for name, w in kept.items())
    heat = taught.apply(progress=False).levels[0][...].astype(int)
    difference = np.abs(heat - taught.heat.levels[0][...])
    assert difference[:, :256, :256].max() <= TOLERANCE, "where both cut windows on the same grid of the encoder"
    assert difference.mean() <= ELSEWHERE
    small = Model(model.net, replace(model.card, tile=(192, 192)))
    example = np.stack([part[0].read((0, 0), (192, 192)), part[0].read((100, 200), (192, 192))])
    folder = dh.export(small, tmp_path / "package", example=example)
    again, graph = dh.load_model(folder), dh.load_model(folder / "model.onnx", card=small.card)
    with torch.inference_mode():
        scores = [m(torch.from_numpy(example)).numpy() for m in (small, again, graph)]
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-3)
    np.testing.assert_allclose(scores[0], scores[2], atol=1e-3)


def test_the_way_down_of_a_unet_serves(part: tuple[Scan, np.ndarray], strokes: Annotations, encoder: Model) -> None:
    unet = dh.create_model("unet", ["a", "b"], encoder="resnet18", tile=128, spacing=1.0, seed=3)
    learner = Learner(part[0], strokes, encoder=unet)
    learner.update()
    net = learner.model.net
    assert torch.equal(net.encoder.state_dict()["conv1.weight"], unet.net.encoder.conv1.weight)
    assert learner.heat.levels[0][:, :64, :64].shape == (4, 64, 64)


def test_models_without_an_encoder_are_refused(part: tuple[Scan, np.ndarray], strokes: Annotations) -> None:
    with pytest.raises(BadValueError, match="torchvision or timm"):
        Learner(part[0], strokes, encoder=dh.create_model("unet", ["a", "b"], tile=64, spacing=1.0))
    grey = dh.create_model("cnn", ["a", "b"], tile=64, spacing=1.0, axes="yx")
    with pytest.raises(BadShapeError, match="the scan has 3"):
        Learner(part[0], strokes, encoder=grey)
