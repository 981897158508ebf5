"""Training with a pipeline: from transforms, ECVL's text or a file; what cannot be used is said before it begins."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from dhlab.augment import (
    Affine,
    CenterCrop,
    Compose,
    Elastic,
    Flip,
    GaussianNoise,
    Mirror,
    Normalize,
    OneOf,
    StainJitter,
    default_pipeline,
    read_pipeline,
)
from dhlab.augment.windows import augment_batch
from dhlab.datasets import Dataset
from dhlab.errors import BadFileError, BadValueError, ConflictError, DHLabWarning, NotFoundError, UnknownNameError
from dhlab.models import create_model
from dhlab.training import Loader, Settings, fit

TEXT = """SequentialAugmentationContainer
    AugMirror p=0.5
    AugRotate angle=[-10,10]
    AugGammaContrast gamma=[0.8,1.2]
end
"""


def some_data(count: int = 12, *, seed: int = 0, axes: str = "yxc", dtype: str = "uint8") -> Dataset:
    rng = np.random.default_rng(seed)
    shape = {"yxc": (20, 20, 3), "yx": (20, 20), "zyx": (4, 20, 20)}[axes]
    images = rng.integers(0, 200, (count, *shape)).astype(dtype)
    images[::2] += 40
    return Dataset.from_arrays(
        images,
        np.arange(count) % 2,
        classes=("bright", "dark"),
        task="classification",
        axes=axes,
        groups=[f"{seed}-{i}" for i in range(count)],
    )


def some_model(axes: str = "yxc", dtype: str = "uint8"):
    tile = {"yxc": 20, "yx": 20, "zyx": [4, 20, 20]}[axes]
    channels = {"channels": 3} if "c" in axes else {"channels": 1}
    return create_model(
        "cnn", ("bright", "dark"), tile=tile, spacing=1.0, axes=axes, dtype=dtype, width=4, depth=1, **channels
    )


def train(augment, folder=None, **changes):
    torch.set_num_threads(1)
    model = some_model()
    options = {"epochs": 2, "batch_size": 4, "checkpoint_minutes": 0.0, "progress": False}
    fit(model, some_data(), augment=augment, folder=folder, **(options | changes))
    return model.digest()


def test_transforms_text_and_files_train_alike(tmp_path):
    pipeline = read_pipeline(TEXT)
    text, values = tmp_path / "augment.txt", tmp_path / "augment.json"
    text.write_text(TEXT)
    values.write_text(json.dumps(pipeline.to_dict()))
    digests = {train(source) for source in (pipeline, TEXT, text, str(text), values, pipeline.to_dict())}
    assert len(digests) == 1
    assert digests != {train(True)}
    assert train(True) == train(1.0) != train(False)


def test_a_killed_run_goes_on_with_its_pipeline(tmp_path):
    """The pipeline is part of what the run is: the same goes on bitwise, another is refused."""

    class StopError(Exception):
        pass

    def listen(event):
        if event.kind == "step" and event.step == 4:
            raise StopError

    pipeline = Compose([OneOf([Affine((-20, 20)), Elastic()]), StainJitter(), GaussianNoise()])
    with pytest.raises(StopError):
        train(pipeline, tmp_path, on_event=listen)
    recorded = json.loads((tmp_path / "run.json").read_text())["settings"]["augment"]
    assert read_pipeline(recorded) == pipeline
    with pytest.raises(ConflictError, match="augment"):
        train(Compose([Flip()]), tmp_path)
    assert train(pipeline, tmp_path) == train(pipeline)


def test_output_steps_are_left_to_the_model():
    with pytest.warns(DHLabWarning, match="the model scales and normalises"):
        settings = Settings(augment=Compose([Mirror(), Normalize(0.5, 0.2)]))
    assert settings.augment == Compose([Mirror()])


@pytest.mark.parametrize(
    ("augment", "kind", "says"),
    [
        (Compose([CenterCrop(10)]), BadValueError, "the model takes the latter"),
        ("AugRotat angle=[1,2]", UnknownNameError, "AugRotate"),
        ("nowhere/augment.txt", NotFoundError, "nowhere"),
        (-1.0, BadValueError, "at least 0"),
        ([Flip()], BadValueError, "expected True, False"),
        ({"transform": "Flop"}, UnknownNameError, "Flip"),
    ],
)
def test_refused_before_training(augment, kind, says):
    with pytest.raises(kind, match=says):
        train(augment)


def test_refuses_files_that_hold_no_pipeline(tmp_path):
    broken, binary = tmp_path / "broken.json", tmp_path / "binary.txt"
    broken.write_text("{")
    binary.write_bytes(b"\xff\xfe\x00")
    for path in (broken, binary):
        with pytest.raises(BadFileError, match=path.name):
            read_pipeline(path)


@pytest.mark.parametrize(("axes", "dtype"), [("yx", "uint16"), ("zyx", "float32")])
def test_colour_on_scans_without_it_is_refused(axes, dtype):
    data, model = some_data(axes=axes, dtype=dtype), some_model(axes, dtype)
    options = {"epochs": 1, "batch_size": 4, "progress": False}
    with pytest.raises(BadValueError, match="StainJitter need uint8 windows"):
        fit(model, data, augment=Compose([Flip(), StainJitter()]), **options)
    fit(model, data, augment=Compose([Flip(), OneOf([Mirror()], p=0.5)]), **options)


def test_masks_move_with_their_pictures():
    """A picture of its own mask stays one, whatever bends it; labels stay labels, ignored pixels too."""
    masks = np.kron(np.random.default_rng(0).integers(-1, 3, (6, 8, 8)), np.ones((6, 6), np.int64))
    images = np.repeat(((masks + 1) * 60).astype(np.uint8)[..., None], 3, -1)
    pipeline = Compose(
        [Mirror(), Affine((-40, 40), interpolation="nearest"), Elastic(interpolation="nearest", border="constant")]
    )
    moved, labels = augment_batch(images, masks, axes="yxc", seed=0, epoch=0, indices=range(6), pipeline=pipeline)
    inside = labels != 0  # black beyond the edge is label -1 in the picture, 0 in the mask
    assert np.array_equal(moved[..., 0][inside], ((labels + 1) * 60)[inside])
    assert set(np.unique(labels)) <= {-1, 0, 1, 2}
    assert labels.dtype == np.int64


def test_the_usual_pipeline():
    assert default_pipeline().passes == 1
    assert [type(s).__name__ for s in default_pipeline()] == ["QuarterTurns", "Mirror", "StainJitter", "Brightness"]
    assert len(default_pipeline(0.0)) == len(default_pipeline(coloured=False)) == 2
    batch = next(iter(Loader(some_data(), 6, augment=default_pipeline()).batches()))
    assert batch.images.shape == (6, 20, 20, 3)
