"""Augmentation: the same sample comes out the same in any batch, and masks move with their image."""

from __future__ import annotations

import numpy as np
import pytest

from dhlab.augment.windows import augment_batch, turn_plane
from dhlab.errors import BadShapeError
from dhlab.phantoms import paint_slide


def paint(count: int, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    pairs = [paint_slide(shape, rng=i, spacing=4.0, whole=True) for i in range(count)]
    return np.stack([p[0] for p in pairs]), np.stack([p[1] for p in pairs]).astype(np.int64) - 1


@pytest.mark.parametrize("shape", [(63, 63), (41, 67), (1, 1), (1, 97)])
def test_does_not_depend_on_the_batch(shape):
    images, targets = paint(7, shape)
    whole = augment_batch(images, targets, axes="yxc", seed=3, epoch=2, indices=range(7))
    order = np.array([5, 0, 3])
    some = augment_batch(images[order], targets[order], axes="yxc", seed=3, epoch=2, indices=order)
    assert np.array_equal(some[0], whole[0][order])
    assert np.array_equal(some[1], whole[1][order])


def test_depends_on_seed_epoch_and_sample():
    images, targets = paint(1, (64, 64))
    seen = set()
    for seed, epoch, index in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 2**40)]:
        image, _ = augment_batch(images, targets, axes="yxc", seed=seed, epoch=epoch, indices=[index])
        seen.add(image.tobytes())
    assert len(seen) == 5


def test_masks_move_with_their_image():
    """An image that is a picture of its own mask stays one, whatever the geometry."""
    _, targets = paint(40, (33, 33))
    images = np.repeat((targets[..., None] * 50).astype(np.uint8), 3, axis=-1)
    moved, masks = augment_batch(images, targets, axes="yxc", seed=0, epoch=0, indices=range(40), pipeline=0.0)
    assert np.array_equal(moved[..., 0], masks * 50)
    assert len({(m.tobytes() == t.tobytes()) for m, t in zip(masks, targets, strict=True)}) == 2


def test_all_eight_positions_of_a_square_occur():
    image = np.arange(9, dtype=np.uint8).reshape(1, 3, 3)
    seen = {
        augment_batch(image, np.zeros(1, np.int64), axes="yx", seed=0, epoch=e, indices=[0])[0].tobytes()
        for e in range(100)
    }
    assert len(seen) == 8


def test_ignored_pixels_and_label_values_survive():
    images, targets = paint(9, (48, 48))
    targets[:, :10] = -1
    _, masks = augment_batch(images, targets, axes="yxc", seed=0, epoch=0, indices=range(9))
    for mask, target in zip(masks, targets, strict=True):
        assert np.array_equal(np.sort(mask, axis=None), np.sort(target, axis=None))


def test_colour_changes_modestly_and_glass_stays_bright():
    images, targets = paint(20, (64, 64))
    images[:, :8] = 243
    changed, _ = augment_batch(images, targets, axes="yxc", seed=0, epoch=0, indices=range(20))
    plain, _ = augment_batch(images, targets, axes="yxc", seed=0, epoch=0, indices=range(20), pipeline=0.0)
    difference = np.abs(changed.astype(int) - plain)
    assert 1 < difference.mean() < 30
    glass = (plain == 243).all(-1)
    assert changed[glass].min() > 190


def test_signals_and_volumes_keep_their_other_axes():
    signal = np.random.default_rng(0).normal(size=(4, 3, 101)).astype(np.float32)
    out, _ = augment_batch(signal, np.zeros(4, np.int64), axes="ct", seed=0, epoch=0, indices=range(4))
    assert np.array_equal(out, signal)
    volume = np.arange(5 * 6 * 7, dtype=np.int16).reshape(1, 5, 6, 7)
    out, mask = augment_batch(volume, volume.astype(np.int64), axes="zyx", seed=0, epoch=0, indices=[3])
    assert np.array_equal(out, mask)
    assert all(set(a.ravel()) == set(b.ravel()) for a, b in zip(out[0], volume[0], strict=True))


def test_refuses_what_does_not_fit():
    with pytest.raises(BadShapeError, match="equal numbers"):
        augment_batch(np.zeros((2, 8, 8, 3), np.uint8), np.zeros(2, np.int64), axes="yxc", seed=0, epoch=0, indices=[0])


@pytest.mark.parametrize("shape", [(1, 1, 3), (7, 63, 3), (63, 7, 1), (5, 5)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.int64])
def test_turns_are_numpys(shape, dtype):
    array = np.random.default_rng(0).integers(0, 200, shape).astype(dtype)
    quarter = np.array([[0, 1], [-1, 0]])
    for turns in range(4):
        for mirrored in (False, True):
            wanted = np.rot90(array, turns, (0, 1))
            wanted = np.flip(wanted, 1) if mirrored else wanted
            turn = np.linalg.matrix_power(quarter, turns) @ (np.diag([1, -1]) if mirrored else np.eye(2, dtype=int))
            assert np.array_equal(turn_plane(array, (0, 1), turn), wanted)
