"""Attribution maps: known values, the place of the evidence, and the frame of the scan."""

from __future__ import annotations

import math
import sys
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from scipy.ndimage import uniform_filter
from torch import nn
from torch.nn import functional

from dhlab.errors import BadShapeError, BadValueError, DHLabWarning, MissingDependencyError, UnknownNameError
from dhlab.explanation import attribute, explain, find_layer
from dhlab.models import Model, ModelCard, create_model
from dhlab.networks import OnnxNet
from dhlab.scan import Scan
from dhlab.view.composite import compose
from dhlab.view.layers import locate

METHODS = ["grad-cam", "integrated-gradients"]
SQUARE = 8


def graph_of(card: ModelCard) -> Model:
    """Return a model that is an ONNX graph, of no use but valid."""
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", 3]) for name in "xy"]
    body = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "graph", ends[:1], ends[1:])
    versions = {"ir_version": 10, "opset_imports": [onnx.helper.make_opsetid("", 20)]}
    return Model(OnnxNet(onnx.helper.make_model(body, **versions).SerializeToString()), card)


def paint(count: int, side: int, rng: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Paint noisy windows; a bright square decides the class, a dark one means nothing. Return corners as well."""
    random = np.random.default_rng(rng)
    windows = random.normal(120, 12, (count, side, side, 3))
    corners = random.integers(0, side - SQUARE + 1, (count, 2))
    truth = random.integers(0, 2, count)
    for window, (y, x), positive in zip(windows, corners, truth, strict=True):
        v, u = random.integers(0, side - SQUARE + 1, 2)
        window[v : v + SQUARE, u : u + SQUARE] -= 70
        if positive:
            window[y : y + SQUARE, x : x + SQUARE] += 90
    return windows.clip(0, 255).astype(np.uint8), truth, corners


@pytest.fixture(scope="module")
def finder() -> Model:
    """Return a small classifier that has learned to find bright squares."""
    model = create_model("cnn", ["nothing", "bright"], tile=32, spacing=0.5, width=8, depth=2)
    windows, truth, _ = paint(512, 32, 0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    random = np.random.default_rng(0)
    for _ in range(120):
        chosen = random.integers(0, len(windows), 32)
        loss = functional.cross_entropy(
            model.logits(torch.from_numpy(windows[chosen])), torch.from_numpy(truth[chosen])
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    optimizer.zero_grad()
    model.eval()
    fresh, truth, _ = paint(200, 32, 1)
    with torch.inference_mode():
        right = (model(torch.from_numpy(fresh)).argmax(1).numpy() == truth).mean()
    assert right > 0.95, "what has not learned cannot be explained"
    return model


def share_inside(maps: np.ndarray, corners: np.ndarray, margin: int) -> float:
    """Return the mean share of the positive mass that lies in the square and a margin around it."""
    shares = []
    for one, corner in zip(maps.clip(0), corners, strict=True):
        y, x = (slice(max(0, c - margin), c + SQUARE + margin) for c in corner)
        shares.append(one[y, x].sum() / one.sum())
    return float(np.mean(shares))


@pytest.mark.parametrize(("method", "margin", "times"), [("grad-cam", 8, 2.5), ("integrated-gradients", 0, 8)])
def test_the_evidence_is_found_where_it_is(finder: Model, method: str, margin: int, times: float) -> None:
    """2.5 and 8 times the mass that chance puts there: measured are 3.0 (92 % of all mass) and 14.

    A map that knows nothing puts the area's share there; so does the true map where the square is elsewhere. The
    margin of Grad-CAM is what a pixel of its layer sees.
    """
    windows, truth, corners = paint(120, 48, 2)
    corners = corners[truth == 1]
    maps = attribute(finder, windows[truth == 1], target="bright", method=method)
    flat, other = np.ones_like(maps), np.random.default_rng(0).permutation(corners)
    chance = max(share_inside(flat, corners, margin), share_inside(maps, other, margin))
    assert share_inside(maps, corners, margin) > times * chance


@pytest.mark.parametrize("baseline", [None, 0, 119])
def test_integrated_gradients_are_complete(finder: Model, baseline: int | None) -> None:
    """They add up to the difference of the logit between window and baseline (axiom of completeness)."""
    windows, _, _ = paint(7, 32, 3)
    maps = attribute(finder, windows, target="bright", method="integrated-gradients", baseline=baseline, steps=200).sum(
        (1, 2)
    )
    with torch.inference_mode():
        if baseline is None:
            start = finder.net(torch.zeros(1, 3, 32, 32))
        else:
            start = finder.logits(torch.full((1, 32, 32, 3), baseline, dtype=torch.uint8))
        difference = (finder.logits(torch.from_numpy(windows)) - start)[:, 1].numpy()
    assert np.ptp(difference) > 1
    np.testing.assert_allclose(maps, difference, rtol=0.01, atol=0.02)


def test_integrated_gradients_of_a_linear_net_are_known() -> None:
    """For a linear net they are weight times distance from the baseline, exactly, whatever the steps."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 5 * 7, 2))
    card = replace(create_model("cnn", ["a", "b"], tile=(5, 7), spacing=1).card, mean=(0.1, 0.2, 0.3))
    model = Model(net, card)
    windows = np.random.default_rng(0).integers(0, 256, (3, 5, 7, 3)).astype(np.uint8)
    got = attribute(model, windows, target="b", method="integrated-gradients", baseline=51, steps=3)
    weights = net[1].weight[1].detach().numpy().reshape(3, 5, 7)
    distance = (windows.astype(np.float64) - 51) / 255 / 0.25
    np.testing.assert_allclose(got, np.einsum("byxc,cyx->byx", distance, weights), rtol=1e-4, atol=1e-5)


def test_grad_cam_before_mean_pooling_is_known(finder: Model) -> None:
    """There it is the class activation map: features weighted by the head, over their number (Zhou et al. 2016)."""
    windows, _, _ = paint(3, 32, 4)
    with torch.inference_mode():
        features = finder.net.stages(finder.prepare(torch.from_numpy(windows)))
        cam = torch.einsum("k,bkyx->byx", finder.net.head.weight[1], features).relu() / features[0, 0].numel()
        expected = functional.interpolate(cam[:, None], (32, 32), mode="bilinear")[:, 0]
    assert expected.max() > 0.01
    np.testing.assert_allclose(attribute(finder, windows, target="bright"), expected.numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_a_map_lies_on_its_scan(finder: Model, method: str) -> None:
    """A scan twice as fine as the model, of odd size: the map has the model's pixels and the scan's frame."""
    pixels = np.full((150, 211, 3), 120, np.uint8)
    pixels[96:112, 128:144] = 210
    scan = Scan.from_array(pixels, "yxc", spacing=0.25, unit="µm", name="slide")
    heat = explain(finder, scan, target="bright", method=method, progress=False)
    assert (heat.kind, heat.axes, heat.parent) == ("heatmap", "cyx", scan.as_parent())
    assert heat.spacing == (0.5, 0.5)
    assert heat.shape == (75, 106)
    place = locate(heat, scan)
    assert (place.scale, place.offset) == ((2.0, 2.0), (0.0, 0.0))
    speaks = np.asarray(heat.levels[0])[0]
    peak = np.unravel_index(uniform_filter(speaks, SQUARE).argmax(), speaks.shape)
    assert math.dist(peak, (52, 68)) < SQUARE / 2
    picture = compose(scan, heat, legend=False).astype(int)
    changed = np.abs(picture - compose(scan, legend=False)).sum(-1)
    assert changed[96:112, 128:144].mean() > 4 * changed.mean()


def test_windows_that_do_not_overlap_keep_their_values(finder: Model) -> None:
    windows, _, _ = paint(6, 32, 5)
    wide = windows.reshape(2, 3, 32, 32, 3).swapaxes(1, 2).reshape(64, 96, 3)
    settings = {"target": "bright", "method": "integrated-gradients"}
    heat = explain(finder, wide, overlap=0, batch_size=4, progress=False, **settings)
    signed = np.subtract(*np.asarray(heat.levels[0])) * heat.meta["scale"]
    alone = attribute(finder, windows, **settings)
    expected = alone.reshape(2, 3, 32, 32).swapaxes(1, 2).reshape(64, 96)
    np.testing.assert_allclose(signed, expected, rtol=1e-3, atol=1e-5)
    assert heat.channels == ("for bright", "against bright")


def test_one_window_of_the_card(finder: Model) -> None:
    windows, truth, _ = paint(9, 32, 6)
    positive = int(np.flatnonzero(truth)[0])
    heat = explain(finder, windows[positive], progress=False)
    assert heat.channels == ("bright",), "the largest score is explained"
    assert heat.meta["layer"] == "stages"
    array = np.asarray(heat.levels[0])
    assert array.shape == (1, 32, 32)
    assert array.max() == 1
    raw = attribute(finder, windows[positive : positive + 1], target="bright")
    np.testing.assert_allclose(array * heat.meta["scale"], raw, rtol=1e-5, atol=1e-7)


def test_a_reduced_map_holds_means(finder: Model) -> None:
    windows, _, _ = paint(4, 32, 7)
    wide = windows.reshape(2, 2, 32, 32, 3).swapaxes(1, 2).reshape(64, 64, 3)
    settings = {"target": "bright", "method": "integrated-gradients", "overlap": 0, "progress": False}
    fine, coarse = (explain(finder, wide, reduction=step, **settings) for step in (1, 8))
    signed = [np.subtract(*np.asarray(heat.levels[0])) * heat.meta["scale"] for heat in (fine, coarse)]
    assert coarse.spacing == (4.0, 4.0)
    np.testing.assert_allclose(signed[1], signed[0].reshape(8, 8, 8, 8).mean((1, 3)), rtol=1e-3, atol=1e-6)
    with pytest.raises(BadValueError, match="divisor of the tile"):
        explain(finder, wide, reduction=5, **settings)


def test_a_large_map_is_reduced_or_refused(finder: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    wide = np.zeros((96, 96, 3), np.uint8)
    monkeypatch.setattr("dhlab.explanation.MEMORY_LIMIT", 8 * 48 * 48)
    assert explain(finder, wide, target="bright", progress=False).shape == (48, 48)
    with pytest.raises(BadValueError, match="takes more than"):
        explain(finder, wide, target="bright", reduction=1, progress=False)


def test_only_what_a_mask_shows(finder: Model) -> None:
    wide = np.concatenate(paint(4, 32, 8)[0], axis=1)
    mask = np.zeros((32, 128), np.uint8)
    mask[:, 40:50] = 1
    scan = Scan.from_array(wide, "yxc", spacing=0.5, unit="µm", name="slide")
    within = Scan.from_array(mask, "yx", spacing=0.5, unit="µm", kind="mask")
    heat = explain(
        finder, scan, target="bright", method="integrated-gradients", within=within, overlap=0, progress=False
    )
    seen = np.asarray(heat.levels[0]).sum((0, 1)) > 0
    assert seen[32:64].mean() > 0.9
    assert not seen[:32].any()
    assert not seen[64:].any()
    with pytest.warns(DHLabWarning, match="sees the mask"):
        empty = explain(finder, scan, within=within.replace(levels=(mask * 0,)), progress=False)
    assert not np.asarray(empty.levels[0]).any()


def test_the_model_stays_as_it_is(finder: Model) -> None:
    model = create_model("cnn", ["nothing", "bright"], tile=32, spacing=0.5, width=8, depth=2)
    model.load_state_dict(finder.state_dict())
    model.train().requires_grad_(False)
    windows, _, _ = paint(3, 32, 9)
    for method in METHODS:
        got = attribute(model, windows, target="bright", method=method)
        np.testing.assert_allclose(got, attribute(finder, windows, target="bright", method=method), atol=1e-6)
    assert model.training
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())
    assert all(p.grad is None for p in finder.parameters())
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), finder.buffers(), strict=True))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("name", "arguments", "shape"),
    [
        ("cnn", {"axes": "ct", "channels": 2, "tile": 63, "dtype": "float32"}, (2, 101)),
        ("unet", {"axes": "zyx", "tile": (5, 17, 9), "dtype": "int16", "value_range": (-1000, 1000)}, (5, 19, 23)),
        ("unet", {"tile": (24, 37)}, (1, 40, 3)),
    ],
)
def test_every_kind_of_scan(method: str, name: str, arguments: dict, shape: tuple[int, ...]) -> None:
    """Signals, volumes and pictures smaller than a tile; of a segmentation the mean logit counts."""
    model = create_model(name, ["a", "b"], spacing=2.0, width=4, **arguments)
    card = model.card
    random = np.random.default_rng(0)
    array = random.uniform(*card.value_range, shape).astype(card.dtype)
    heat = explain(model, array, target="b", method=method, progress=False)
    assert heat.axes == "c" + card.window_axes
    assert heat.shape == tuple(n for n, a in zip(shape, card.axes, strict=True) if a != "c")
    assert np.isfinite(heat.levels[0]).all()
    window = random.uniform(*card.value_range, (1, *card.window_shape)).astype(card.dtype)
    if method == "integrated-gradients":
        total = attribute(model, window, target="b", method=method, steps=200).sum()
        with torch.inference_mode():
            space = torch.zeros(1, card.channels, *card.tile)
            ends = [model.eval().logits(torch.from_numpy(window)), model.net(space)]
        difference = float(ends[0][:, 1].mean() - ends[1][:, 1].mean())
        assert total == pytest.approx(difference, rel=0.02, abs=1e-4)


def test_numbers_are_explained_in_their_unit(finder: Model) -> None:
    card = replace(finder.card, task="regression", activation="none", classes=("area", "depth"))
    windows, _, _ = paint(2, 32, 10)
    plain = attribute(finder, windows, target="bright", method="integrated-gradients")
    scaled = Model(finder.net, replace(card, target_mean=(5.0, 7.0), target_std=(1.0, 30.0)))
    got = attribute(scaled, windows, target="depth", method="integrated-gradients")
    np.testing.assert_allclose(got, 30 * plain, rtol=1e-3, atol=1e-4)
    with pytest.raises(BadValueError, match="say which"):
        explain(scaled, windows[0], progress=False)
    several = Model(finder.net, replace(finder.card, task="multilabel", activation="sigmoid"))
    np.testing.assert_allclose(
        attribute(several, windows, target="bright"), attribute(finder, windows, target="bright")
    )


def test_finds_the_last_picture_before_pooling(finder: Model) -> None:
    assert find_layer(finder) == "stages"
    assert find_layer(create_model("unet", ["a"], tile=64, spacing=1, width=4)) == "down.3", "the narrow part"


def test_finds_the_layer_of_a_residual_net(finder: Model) -> None:
    torchvision = pytest.importorskip("torchvision", exc_type=ImportError)
    card = replace(finder.card, tile=(64, 65))
    model = Model(torchvision.models.resnet18(num_classes=2), card)
    assert find_layer(model) == "layer4"
    heat = attribute(model, np.zeros((2, 64, 65, 3), np.uint8), target="bright")
    assert heat.shape == (2, 64, 65)
    # Where nothing but one pixel is left at the end, an earlier layer shows more.
    assert find_layer(Model(model.net, replace(card, tile=(32, 32)))) == "layer3"


class Transformer(nn.Module):
    """Patches, one layer of attention over them, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.block(self.patches(x).flatten(2).mT).mean(1))


def test_a_transformer_is_no_place_for_grad_cam(finder: Model) -> None:
    model = Model(Transformer(), finder.card)
    windows = np.zeros((1, 32, 32, 3), np.uint8)
    with pytest.raises(BadValueError, match="integrated-gradients"):
        explain(model, windows[0], progress=False)
    with pytest.raises(BadValueError, match="gives no picture"):
        attribute(model, windows, target="bright", layer="block")
    assert attribute(model, windows, target="bright", layer="patches").shape == (1, 32, 32)
    assert attribute(model, windows, target="bright", method="integrated-gradients").shape == (1, 32, 32)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"target": "brightt"}, UnknownNameError, "Did you mean 'bright'"),
        ({"layer": "stage"}, UnknownNameError, "Did you mean"),
        ({"method": "saliency"}, BadValueError, "grad-cam, integrated-gradients"),
        ({"method": "integrated-gradients", "steps": 0}, BadValueError, "at least 1"),
        ({"batch_size": 0}, BadValueError, "batch_size"),
        ({"overlap": 1}, BadValueError, "overlap"),
    ],
)
def test_refuses_what_it_cannot_do(finder: Model, arguments: dict, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        explain(finder, np.zeros((32, 32, 3), np.uint8), progress=False, **arguments)


def test_refuses_scans_that_do_not_fit(finder: Model) -> None:
    with pytest.raises(BadShapeError, match="float32"):
        explain(finder, np.zeros((32, 32, 3), np.float32), progress=False)
    with pytest.raises(BadShapeError, match="channels"):
        explain(finder, np.zeros((32, 32, 4), np.uint8), progress=False)


def test_a_graph_has_no_gradients(finder: Model) -> None:
    with pytest.raises(BadValueError, match="no gradients"):
        explain(graph_of(finder.card), np.zeros((32, 32, 3), np.uint8))


def test_bags_have_their_attention(finder: Model) -> None:
    model = Model(finder.net, replace(finder.card, axes="ic", tile=(4,), spacing=(1.0,), dtype="float32"))
    with pytest.raises(BadValueError, match="attention"):
        explain(model, np.zeros((4, 3), np.float32))


def test_says_what_to_install(finder: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "captum", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'dhlab\[explain\]'"):
        explain(finder, np.zeros((32, 32, 3), np.uint8))


def test_damaged_weights_are_named(finder: Model) -> None:
    model = create_model("cnn", ["a", "b"], tile=32, spacing=0.5, width=4)
    with torch.no_grad():
        model.net.head.weight.fill_(float("nan"))
    with pytest.raises(BadValueError, match="not finite"):
        attribute(model, np.zeros((1, 32, 32, 3), np.uint8), target="a", method="integrated-gradients")
