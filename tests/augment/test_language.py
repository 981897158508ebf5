"""ECVL's text: every augmentation there and back, its defects mended, and errors that show the place."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dhlab.augment import (
    Brightness,
    Compose,
    Elastic,
    Flip,
    GridDistortion,
    Mirror,
    OneOf,
    RandomCrop,
    Rotate,
    Salt,
    StainJitter,
    ToFloat32,
    parse_augmentations,
    to_text,
)
from dhlab.augment.language import FORMS
from dhlab.errors import BadValueError, DHLabWarning, UnknownNameError

EVERYTHING = {
    "AugRotate": 'angle=[-5,10] center=(3,4) scale=1.5 interp="cubic" gt_interp="nearest"',
    "AugResizeDim": 'dims=(40,30) interp="area"',
    "AugResizeScale": "scale=(0.5,1.5)",
    "AugFlip": "p=0.25",
    "AugMirror": "",
    "AugTranspose": "p=1",
    "AugGaussianBlur": "sigma=[0,1.5]",
    "AugAdditiveLaplaceNoise": "std_dev=[0.2,0.4]",
    "AugAdditivePoissonNoise": "lambda=[2,3]",
    "AugGammaContrast": "gamma=[.5,1.5e0]",
    "AugBrightness": "beta=[-10,30]",
    "AugCoarseDropout": "p=[0,0.55] drop_size=[0.02,0.1] per_channel=0.25",
    "AugGridDistortion": 'num_steps=[5,10] distort_limit=[-0.2,0.2] border_type="reflect_101" border_value=3',
    "AugElasticTransform": 'alpha=[34,60] sigma=[4,6] interp="nearest" border_type="wrap"',
    "AugOpticalDistortion": 'distort_limit=[-0.3,0.3] shift_limit=[-1,1] border_type="constant" border_value=255',
    "AugSalt": "p=[0,0.1] per_channel=1",
    "AugPepper": "p=[0,0.1] per_channel=0",
    "AugSaltAndPepper": "p=[0,0.1]",
    "AugNormalize": "mean=(0.4,0.5,0.6) std=(0.1,0.2,0.3)",
    "AugCenterCrop": "",
    "AugRandomCrop": 'size=(20,30) border_type="reflect101"',
    "AugToFloat32": "divisor=255 divisor_gt=255",
    "AugDivBy255": "",
    "AugScaleTo": "new_min=10 new_max=200",
    "AugScaleFromTo": "old_min=0 old_max=255 new_min=10 new_max=200",
}


def test_all_names_are_here():
    assert set(EVERYTHING) == set(FORMS)


@pytest.mark.parametrize("name", EVERYTHING)
def test_each_is_read_written_and_run(name):
    pipeline = parse_augmentations(f"SequentialAugmentationContainer\n  {name} {EVERYTHING[name]}\nend\n")
    assert parse_augmentations(to_text(pipeline)) == pipeline
    images = np.random.default_rng(0).integers(0, 256, (3, 48, 48, 3)).astype(np.uint8)
    masks = torch.from_numpy(images[..., 0] % 3)
    result, moved = pipeline(torch.from_numpy(images), masks, seed=1)
    assert len(result) == 3
    allowed = {0, 1, 2, 3, 255} if "border_value" in EVERYTHING[name] else {0, 1, 2}
    assert set(moved.unique().tolist()) <= allowed


def test_masks_are_never_blended():
    """ECVL bends label maps with the interpolation of pictures; here labels stay labels."""
    labels = torch.from_numpy(np.random.default_rng(0).choice([0, 100, 200], (2, 40, 40)).astype(np.uint8))
    images = torch.zeros(2, 40, 40, 3, dtype=torch.uint8)
    for name in ("AugGridDistortion", "AugElasticTransform", "AugOpticalDistortion", "AugRotate"):
        text = f"{name} {EVERYTHING[name].replace('border_value=3', '').replace('border_value=255', '')}"
        _, moved = parse_augmentations(text)(images, labels, seed=2)
        assert set(moved.unique().tolist()) <= {0, 100, 200}
    with pytest.warns(DHLabWarning, match="nearest pixel"):
        parse_augmentations('AugRotate angle=[0,5] gt_interp="linear"')


def test_optional_arguments_are_optional():
    assert parse_augmentations("AugToFloat32") == Compose((ToFloat32(1.0, 1.0),))
    assert parse_augmentations("AugRandomCrop size=(20,30)") == Compose((RandomCrop((30, 20), border="constant"),))
    assert parse_augmentations("AugSalt p=[0,0.1]") == Compose((Salt((0.0, 0.1)),))


@pytest.mark.parametrize("word", ["reflect101", "reflect_101"])
def test_one_border_in_both_spellings(word):
    bent = parse_augmentations(f'AugGridDistortion num_steps=[5,5] distort_limit=[0,0] border_type="{word}"')
    cut = parse_augmentations(f'AugRandomCrop size=(9,9) border_type="{word}"')
    assert bent.steps[0].border == cut.steps[0].border == "reflect101"


def test_what_it_means():
    pipeline = parse_augmentations(
        """
        SequentialAugmentationContainer
            AugRotate angle=[-5,15]
            OneOfAugmentationContainer p=0.5
                AugMirror p=1
                AugGridDistortion num_steps=[5,10] distort_limit=[-0.2,0.2]
            end
            AugBrightness beta=[0,51]
        end
        """
    )
    assert pipeline.steps == (
        Rotate((-15.0, 5.0), border="constant"),
        OneOf((Mirror(1.0), GridDistortion((5, 9), (-0.2, 0.2))), p=0.5),
        Brightness((1.0, 1.0), (0.0, 0.2)),
    )


def test_normalising_in_the_units_before_it():
    images = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(1, 16, 16, 3)
    raw = parse_augmentations("AugNormalize mean=100 std=50")(images)
    light = parse_augmentations("SequentialAugmentationContainer\nAugDivBy255\nAugNormalize mean=0.4 std=0.2\nend")(
        images
    )
    levels = images.permute(0, 3, 1, 2).double()
    assert torch.allclose(raw.double(), (levels - 100) / 50, atol=1e-5)
    assert torch.allclose(light.double(), (levels / 255 - 0.4) / 0.2, atol=1e-5)
    scaled = parse_augmentations(
        "SequentialAugmentationContainer\nAugToFloat32\nAugScaleFromTo old_min=0 old_max=255 new_min=-1 new_max=1\nend"
    )(images)
    assert torch.allclose(scaled.double(), levels / 127.5 - 1, atol=1e-5)
    stretched = parse_augmentations(
        "SequentialAugmentationContainer\nAugDivBy255\nAugScaleTo new_min=-1 new_max=1\nend"
    )(images[:, 4:12])
    assert (stretched.min().item(), stretched.max().item()) == pytest.approx((-1, 1), abs=1e-5)


@pytest.mark.parametrize(
    ("text", "kind", "place", "says"),
    [
        ("AugRotatee angle=[1,2]", UnknownNameError, (1, 1), "Did you mean 'AugRotate'"),
        ("SequentialAugmentationContainer\n  AugMirror q=1\nend", UnknownNameError, (2, 13), "Known: p"),
        ("AugRotate angle=[1,2] centre=(1,2)", UnknownNameError, (1, 23), "'center'"),
        ("AugMirror p=[0,1]", BadValueError, (1, 13), "expected a number"),
        ("AugRotate angle=(1,2)", BadValueError, (1, 17), "expected a range"),
        ("AugRotate", BadValueError, (1, 1), "lacks angle"),
        ("AugRotate angle=[1,x]", BadValueError, (1, 17), "'x'"),
        ("AugRotate angle=[1,2,3]", BadValueError, (1, 17), "expected two"),
        ("AugRotate angle=[5,1]", BadValueError, (1, 17), "falls"),
        ("AugRotate angle=[1,2", BadValueError, (1, 17), "expected ]"),
        ("AugRotate angle", BadValueError, (1, 16), "expected '='"),
        ("AugRotate angle=nine", BadValueError, (1, 17), "no value"),
        ("AugMirror p=1 p=1", BadValueError, (1, 15), "twice"),
        ("AugMirror p=2", BadValueError, (1, 1), "up to 1"),
        ('AugResizeDim dims=(10,10) interp="lineal"', UnknownNameError, (1, 34), "'linear'"),
        ('AugRandomCrop size=(9,9) border_type="mirror"', UnknownNameError, (1, 38), "wrap"),
        ('AugRandomCrop size=(9,9) border_type="transparent"', BadValueError, (1, 38), "undefined"),
        ("AugResizeDim dims=(10.5,10)", BadValueError, (1, 1), "whole"),
        ("SequentialAugmentationContainer\n  AugMirror", BadValueError, (2, 12), "not closed"),
        ("end", BadValueError, (1, 1), "closes no"),
        ("OneOfAugmentationContainer\nAugMirror\nend", BadValueError, (1, 1), "lacks p"),
        ("OneOfAugmentationContainer p=1\nend", BadValueError, (1, 1), "no steps"),
        ("AugDivBy255\nAugGammaContrast gamma=[1,2]", BadValueError, (2, 1), "before"),
        ("AugSalt p=[0,1] per_channel=2", BadValueError, (1, 1), "per_channel"),
    ],
)
def test_errors_show_the_place(text, kind, place, says):
    with pytest.raises(kind) as caught:
        parse_augmentations(text)
    message, line, caret = str(caught.value).rsplit("\n", 2)
    assert message.startswith(f"line {place[0]}, column {place[1]}: ")
    assert says in message
    assert line.strip() == text.splitlines()[place[0] - 1].strip()
    assert caret.index("^") == 4 + place[1] - 1


def test_empty_text_is_an_error():
    for text in ("", "  \n\n"):
        with pytest.raises(BadValueError, match="no augmentation"):
            parse_augmentations(text)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet='Aug Rotate[](),="0.5\nendMirrorp\t', max_size=80))
def test_any_text_is_read_or_refused(text):
    with contextlib.suppress(BadValueError, UnknownNameError):
        parse_augmentations(text)


def test_writing_what_ecvl_cannot_say():
    with pytest.raises(BadValueError, match="no such augmentation"):
        to_text(Compose((StainJitter(),)))
    with pytest.raises(BadValueError, match="only adds"):
        to_text(Compose((Brightness(),)))
    with pytest.raises(BadValueError, match="evenly"):
        to_text(Compose((OneOf((Flip(), Mirror()), weights=(1, 2)),)))


def test_chance_is_written_as_a_choice():
    pipeline = Compose((Elastic((30.0, 40.0), (4.0, 5.0), p=0.5), Compose((Flip(), Mirror()), p=0.25)))
    again = parse_augmentations(to_text(pipeline))
    assert again.steps[0] == OneOf((Elastic((30.0, 40.0), (4.0, 5.0)),), p=0.5)
    assert again.steps[1] == OneOf((Compose((Flip(), Mirror())),), p=0.25)
