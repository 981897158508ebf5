"""Blending: weights, sums on a canvas, scores, windows gathered in one pass; against float64 and MONAI."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from dhlab.errors import BadShapeError, BadValueError, UnknownNameError
from dhlab.kernels import blend_windows, blend_windows_reference
from dhlab.kernels.blend import OPERATOR, accumulate_windows, gaussian_weights, resolve_scores

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
RESULTS, ACTIVATIONS = ("scores", "quantised", "classes", "mask"), ("none", "softmax", "sigmoid")
# Inputs are exact in float64, so this is float32's arithmetic alone: a few windows' products and sums of scores to 5,
# one division, and for activations 3e-7 of the power of two.
TOLERANCE = 2e-6


@pytest.mark.parametrize("tile", [(1,), (63,), (1, 1), (7, 64), (3, 5, 8)])
def test_weights_are_a_gaussian(tile: tuple[int, ...]) -> None:
    weights = gaussian_weights(tile)
    grids = np.meshgrid(*(np.arange(n) for n in tile), indexing="ij")
    exponent = sum(((g - (n - 1) / 2) / (n / 8)) ** 2 for g, n in zip(grids, tile, strict=True))
    np.testing.assert_allclose(weights.numpy(), np.exp(-exponent / 2).clip(1e-3), rtol=1e-6)


def test_sums_and_scores_equal_float64() -> None:
    rng = np.random.default_rng(0)
    corners = [(0, 0), (2, 5), (2, 5), (4, 6)]
    windows, weights = rng.random((4, 3, 7, 5)), gaussian_weights((7, 5))
    sums, total = np.zeros((3, 13, 12)), np.zeros((13, 12))
    for window, (y, x) in zip(windows, corners, strict=True):
        sums[:, y : y + 7, x : x + 5] += window * weights.numpy()
        total[y : y + 7, x : x + 5] += weights.numpy()
    canvas = accumulate_windows(
        torch.zeros(4, 13, 12), torch.from_numpy(windows).float(), corners=corners, weights=weights
    )
    np.testing.assert_allclose(canvas.numpy(), np.concatenate([sums, total[None]]), atol=1e-5)
    scores = resolve_scores(canvas)
    assert scores.dtype == torch.uint8
    truth = np.divide(sums, total, out=np.zeros_like(sums), where=total > 0) * 255
    assert np.abs(scores.numpy() - truth).max() <= 0.5 + 1e-3
    assert (scores.numpy()[:, total == 0] == 0).all()
    assert (scores.numpy()[:, total > 0] > 0).any()


def test_batches_do_not_matter() -> None:
    windows, corners = torch.rand(9, 2, 16, 16), [(0, 5 * i) for i in range(9)]
    weights = gaussian_weights((16, 16))
    whole = accumulate_windows(torch.zeros(3, 16, 56), windows, corners=corners, weights=weights)
    parts = torch.zeros(3, 16, 56)
    for first in range(0, 9, 2):
        part = slice(first, first + 2)
        accumulate_windows(parts, windows[part], corners=corners[part], weights=weights)
    assert torch.equal(whole, parts)


def test_scores_beyond_one_are_clipped() -> None:
    canvas = torch.tensor([[2.0, -1.0, 0.5], [1.0, 1.0, 1.0]])
    assert resolve_scores(canvas).tolist() == [[255, 0, 128]]


@pytest.mark.parametrize("corner", [(-1, 0), (0, 9), (7, 0)])
def test_refuses_a_window_outside(corner: tuple[int, int]) -> None:
    with pytest.raises(BadShapeError, match="leaves the canvas"):
        accumulate_windows(torch.zeros(2, 10, 12), torch.zeros(1, 1, 4, 4), corners=[corner], weights=torch.ones(4, 4))


def test_refuses_other_classes() -> None:
    with pytest.raises(BadShapeError, match="expected"):
        accumulate_windows(torch.zeros(2, 10, 12), torch.zeros(1, 2, 4, 4), corners=[(0, 0)], weights=torch.ones(4, 4))


def windows_of(count: int, channels: int, tile: tuple[int, int], *, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count + channels)
    return torch.randn((count, channels, *tile), generator=generator).clamp(-5, 5).to(dtype).to(DEVICE)


def grid_of(size: tuple[int, int], tile: tuple[int, int], stride: tuple[int, int]) -> list[tuple[int, int]]:
    """Return corners of a grid that covers a picture; the last windows may leave it."""
    starts = [range(0, max(n - t, 0) + s, s) for n, t, s in zip(size, tile, stride, strict=True)]
    return [(y, x) for y in starts[0] for x in starts[1]]


def agree(mine: torch.Tensor, scores: torch.Tensor, corners: Any, **settings: Any) -> None:
    """Compare with the float64 reference; whole numbers may only differ where float64 is within rounding of a limit."""
    scores, result = scores.double().cpu(), settings.pop("result", "scores")
    weights = settings.pop("weights", None)
    settings["weights"] = None if weights is None else weights.cpu()
    places = {name: value for name, value in settings.items() if name != "activation"}
    truth = blend_windows_reference(scores, corners, **settings)
    means = truth.numpy()
    found = mine.cpu().numpy()
    if result == "scores":
        np.testing.assert_allclose(found, means, rtol=TOLERANCE, atol=TOLERANCE)
    elif result == "quantised":
        assert np.abs(found - (means * 255).clip(0, 255)).max(initial=0) <= 0.5 + 255 * TOLERANCE
        covered = blend_windows_reference(torch.ones_like(scores), corners, **places)
        assert (found[covered.numpy() == 0] == 0).all()
    else:
        whole = blend_windows_reference(scores, corners, result=result, threshold=0.3, **settings).numpy()
        if result == "mask":
            unsure = np.abs(means - 0.3) < TOLERANCE
        else:
            order = np.sort(means, axis=0)
            unsure = order[-1] - order[-2] < TOLERANCE if len(means) > 1 else np.zeros(whole.shape, bool)
            unsure &= order[-1] != order[-2] if len(means) > 1 else False
        np.testing.assert_array_equal(found[~unsure], whole[~unsure])


SPACES = [
    ((1, 1), (1, 1), (1, 1)),
    ((37, 61), (16, 16), (8, 8)),
    ((43, 300), (24, 48), (13, 29)),
    ((5, 271), (7, 31), (7, 31)),
    ((17, 19), (1, 1), (1, 1)),
    ((40, 520), (24, 280), (12, 140)),
]


@pytest.mark.parametrize(("size", "tile", "stride"), SPACES)
@pytest.mark.parametrize("channels", [1, 3, 6])
def test_grids_equal_float64(form: str, size: Any, tile: Any, stride: Any, channels: int) -> None:
    corners = grid_of(size, tile, stride)
    scores = windows_of(len(corners), channels, tile)
    agree(blend_windows(scores, corners, size=size), scores, corners, size=size)


@pytest.mark.parametrize("result", RESULTS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("channels", [1, 5])
def test_results_and_activations(form: str, result: str, activation: str, channels: int) -> None:
    """Scattered windows: some alike, some half or wholly outside, and pixels where none came."""
    generator = np.random.default_rng(1)
    corners = [*generator.integers((-20, -20), (60, 90), (17, 2)).tolist(), (3, 4), (3, 4), (500, 0), (0, -50)]
    scores = windows_of(len(corners), channels, (23, 18))
    made = blend_windows(
        scores, corners, size=(51, 83), result=result, activation=activation, threshold=0.3, first_row=5
    )
    assert made.dtype == (torch.float32 if result == "scores" else torch.uint8)
    agree(made, scores, corners, size=(51, 83), result=result, activation=activation, first_row=5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("activation", ["none", "softmax"])
def test_types_and_layouts(form: str, dtype: torch.dtype, axis: int, activation: str) -> None:
    corners = grid_of((30, 70), (16, 21), (8, 10))
    scores = windows_of(len(corners), 4, (16, 21), dtype=dtype)
    given = scores if axis == 1 else scores.movedim(1, -1).contiguous()
    made = blend_windows(given, corners, size=(30, 70), channel_axis=axis, activation=activation)
    agree(made, scores, corners, size=(30, 70), activation=activation)


def test_strided_scores_and_out(form: str) -> None:
    corners = grid_of((33, 41), (16, 12), (9, 7))
    scores = windows_of(2 * len(corners), 7, (18, 30))[::2, 1::2, 1:17, 3:27:2]
    picture = torch.full((3, 80, 90), torch.nan, device=DEVICE)
    band = picture[:, 10:43, 20:61]
    assert blend_windows(scores, corners, size=(33, 41), out=band) is band
    agree(band, scores, corners, size=(33, 41))
    assert picture.isnan().sum() == 3 * (80 * 90 - 33 * 41)


def test_weights_of_ones_and_of_zeros(form: str) -> None:
    corners = [(0, 0), (0, 5)]
    scores, weights = windows_of(2, 2, (8, 9)), torch.ones(8, 9, device=DEVICE)
    weights[:, :3] = 0
    made = blend_windows(scores, corners, size=(8, 14), weights=weights)
    agree(made, scores, corners, size=(8, 14), weights=weights)
    assert (made[:, :, :3] == 0).all()


def test_batches_order_and_bands_do_not_matter(form: str) -> None:
    corners = grid_of((61, 45), (16, 20), (11, 9))
    scores = windows_of(len(corners), 3, (16, 20))
    whole = blend_windows(scores, corners, size=(61, 45))
    assert torch.equal(blend_windows(scores.split([1, 7, len(corners) - 8]), corners, size=(61, 45)), whole)
    order = torch.randperm(len(corners), generator=torch.Generator().manual_seed(0))
    assert torch.equal(blend_windows(scores[order.to(DEVICE)], torch.tensor(corners)[order], size=(61, 45)), whole)
    for first, last in [(0, 7), (7, 50), (50, 61)]:
        touching = [i for i, (y, _) in enumerate(corners) if y < last and y + 16 > first]
        band = blend_windows(scores[touching], [corners[i] for i in touching], size=(last - first, 45), first_row=first)
        assert torch.equal(band, whole[:, first:last])


def test_batches_of_other_strides(form: str) -> None:
    scores = windows_of(6, 3, (8, 8))
    corners = grid_of((16, 24), (8, 8), (8, 8))
    mixed = [scores[:2], scores[2:4].to(memory_format=torch.channels_last), scores[4:4], scores[4:]]
    assert torch.equal(blend_windows(mixed, corners, size=(16, 24)), blend_windows(scores, corners, size=(16, 24)))


def test_equal_windows_give_themselves(form: str) -> None:
    corners = grid_of((40, 50), (16, 16), (4, 4))
    made = blend_windows(torch.full((len(corners), 2, 16, 16), 0.7, device=DEVICE), corners, size=(40, 50))
    torch.testing.assert_close(made, torch.full_like(made, 0.7), rtol=1e-6, atol=0)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_do_not_matter(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    corners = grid_of((200, 300), (64, 64), (32, 32))
    scores = windows_of(len(corners), 3, (64, 64)).cpu()
    whole = blend_windows(scores, corners, size=(200, 300))
    monkeypatch.setattr("dhlab.kernels._cpu.blend.threads_for", lambda _: threads)
    assert torch.equal(blend_windows(scores, corners, size=(200, 300)), whole)


@pytest.mark.parametrize("result", RESULTS)
def test_nothing(form: str, result: str) -> None:
    none = windows_of(0, 2, (8, 8))
    assert (blend_windows(none, [], size=(5, 6), result=result) == 0).all()
    assert blend_windows(windows_of(1, 2, (8, 8)), [(0, 0)], size=(0, 6), result=result).numel() == 0


def test_many_channels(form: str) -> None:
    scores = windows_of(2, 70, (8, 8))
    agree(blend_windows(scores, [(0, 0), (0, 4)], size=(8, 12)), scores, [(0, 0), (0, 4)], size=(8, 12))


def test_extreme_scores_stay_finite(form: str) -> None:
    scores = torch.tensor([-1e4, 0.0, 1e4], device=DEVICE).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    for activation, expected in (("softmax", [0.0, 0.0, 1.0]), ("sigmoid", [0.0, 0.5, 1.0])):
        made = blend_windows(scores, [(0, 0)], size=(4, 4), activation=activation)
        torch.testing.assert_close(made[:, 0, 0].cpu(), torch.tensor(expected), rtol=1e-6, atol=1e-6)


def test_equals_monai() -> None:
    inferers = pytest.importorskip("monai.inferers")
    side, roi = 160, 64
    image = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    kept = []

    def predictor(x: torch.Tensor) -> torch.Tensor:
        kept.append(torch.cat([x, x * 2 - 1, -x], dim=1) * torch.linspace(-1, 1, roi))
        return kept[-1].clone()

    theirs = inferers.SlidingWindowInferer((roi, roi), sw_batch_size=4, overlap=0.5, mode="gaussian")(image, predictor)
    corners = [(y, x) for y in range(0, side - roi + 1, 32) for x in range(0, side - roi + 1, 32)]
    mine = blend_windows(kept, corners, size=(side, side))
    torch.testing.assert_close(mine, theirs[0], rtol=0, atol=1e-6)
    classes = blend_windows(kept, corners, size=(side, side), result="classes")
    assert torch.equal(classes.long(), theirs[0].argmax(0))


def test_gradients_of_the_reference() -> None:
    scores = torch.randn(3, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    corners = [(0, 0), (2, 2), (5, -1)]
    assert torch.autograd.gradcheck(
        lambda x: blend_windows_reference(x, corners, size=(7, 7), activation="softmax"), (scores,)
    )


def test_gradients_reach_scores(form: str) -> None:
    scores = windows_of(2, 2, (4, 4)).requires_grad_()
    blend_windows(scores, [(0, 0), (0, 2)], size=(4, 6)).sum().backward()
    # The weights of a pixel sum to one, over the windows that cover it.
    assert scores.grad is not None
    assert scores.grad.sum().item() == pytest.approx(2 * 4 * 6, rel=1e-5)


def test_is_one_operator() -> None:
    scores, corners = windows_of(2, 3, (8, 8)), torch.tensor([[0, 0], [0, 4]])
    out, weights = torch.empty(3, 8, 12, device=DEVICE), gaussian_weights((8, 8), device=DEVICE)
    torch.library.opcheck(OPERATOR, ([scores], corners, weights, "scores", "none", 0.5, 0, out))
    compiled = torch.compile(lambda x: blend_windows(x, corners, size=(8, 12)), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(scores), blend_windows(scores, corners, size=(8, 12)))


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"scores": torch.zeros(2, 3, 8)}, BadShapeError, "expected"),
        ({"scores": []}, BadShapeError, "at least one batch"),
        ({"scores": torch.zeros(2, 3, 8, 8, dtype=torch.float64)}, BadShapeError, "float32, bfloat16"),
        ({"scores": torch.zeros(2, 0, 8, 8)}, BadShapeError, "at least one pixel"),
        ({"scores": [torch.zeros(1, 3, 8, 8), torch.zeros(1, 2, 8, 8)]}, BadShapeError, "differ"),
        ({"scores": torch.zeros(2, 300, 8, 8), "result": "classes"}, BadValueError, "at most 256"),
        ({"channel_axis": 2}, BadShapeError, "axis 2"),
        ({"corners": [(0, 0)]}, BadShapeError, "1 corners for 2 windows"),
        ({"corners": [(0.5, 0), (1, 1)]}, BadShapeError, "whole numbers"),
        ({"corners": [0, 1]}, BadShapeError, "whole numbers"),
        ({"weights": torch.ones(8, 7)}, BadShapeError, "weights"),
        ({"result": "score"}, UnknownNameError, "Did you mean 'scores'"),
        ({"activation": "softmx"}, UnknownNameError, "Did you mean 'softmax'"),
        ({"threshold": float("nan")}, BadValueError, "finite"),
        ({"out": torch.zeros(3, 8, 8)}, BadShapeError, "out is"),
        ({"out": torch.zeros(3, 12, 9).mT}, BadShapeError, "next to one another"),
        ({"out": torch.zeros(3, 9, 12), "result": "quantised"}, BadShapeError, "uint8"),
    ],
)
def test_refuses_what_does_not_fit(change: dict[str, Any], error: type[Exception], match: str) -> None:
    arguments: dict[str, Any] = {
        "scores": torch.zeros(2, 3, 8, 8),
        "corners": [(0, 0), (1, 4)],
        "size": (9, 12),
    } | change
    with pytest.raises(error, match=match):
        blend_windows(arguments.pop("scores"), arguments.pop("corners"), **arguments)


BANDS = """
import json, resource
import torch
from dhlab.kernels import blend_windows

torch.set_num_threads(1)
tile, stride, width, classes = 128, 64, 2048, 6
across = [(0, x) for x in range(0, width - tile + 1, stride)]
corners = torch.tensor(across + [(stride, x) for _, x in across])
rows = [torch.rand(len(across), classes, tile, tile) for _ in range(2)]
weights, band = torch.ones(tile, tile), torch.empty(stride, width, dtype=torch.uint8)
peaks = []
for bands in (4, 400):
    for number in range(bands):
        place = corners + torch.tensor([number * stride, 0])
        blend_windows(rows, place, size=(stride, width), first_row=(number + 1) * stride, weights=weights,
                      result="classes", out=band)
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
print(json.dumps({"peaks": peaks, "canvas": 400 * stride * width * classes * 4 / 2**20}))
"""


def test_a_stream_of_bands_takes_the_memory_of_one() -> None:
    done = subprocess.run([sys.executable, "-c", BANDS], capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout)
    few, many = answer["peaks"]
    print(f"peak {few:.0f} MiB after 4 bands, {many:.0f} MiB after 400; a float canvas: {answer['canvas']:.0f} MiB")
    assert many - few < answer["canvas"] / 50


@pytest.mark.gpu
def test_more_than_two_thousand_million_scores() -> None:
    """Offsets beyond int32, in and out."""
    scores = torch.zeros((9, 1, 16_384, 16_384), dtype=torch.float16, device="cuda")
    scores[-1, 0, -1, -1] = 1
    corners = [(y * 16_384, x * 16_384) for y in range(3) for x in range(3)]
    weights = torch.ones(16_384, 16_384, device="cuda")
    made = blend_windows(scores, corners, size=(49_152, 49_152), weights=weights, result="quantised")
    assert made[0, -1, -1].item() == 255
    assert made.count_nonzero().item() == 1
