"""Settings refuse what makes no sense, and say so as JSON."""

from __future__ import annotations

import json
import math

import pytest
import torch

from dhlab.errors import BadValueError, UnknownNameError
from dhlab.training import Settings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("epochs", 1.5),
        ("batch_size", 0),
        ("accumulate", 0),
        ("patience", 0),
        ("learning_rate", math.inf),
        ("learning_rate", -1),
        ("minutes", 0),
        ("clip", 0),
        ("weight_decay", -0.1),
        ("body_rate", math.nan),
        ("warm_up", 1.0),
        ("label_smoothing", 1),
        ("averaging", 1.0),
        ("seed", -1),
    ],
)
def test_out_of_range(name, value):
    with pytest.raises(BadValueError, match=f"{name} is {value}; expected"):
        Settings(**{name: value})


@pytest.mark.parametrize(
    "name", ["optimizer", "schedule", "precision", "class_weights", "activation_checkpointing", "loss"]
)
def test_unknown_names_list_the_known(name):
    with pytest.raises(UnknownNameError, match=r"Choose among"):
        Settings(**{name: "lots"})


def test_a_misspelt_loss_is_suggested():
    with pytest.raises(UnknownNameError, match=r"Did you mean 'focal-tversky'"):
        Settings(loss="focal-tverski")


def test_a_loss_by_name_is_recorded():
    assert Settings(loss="focal-tversky").to_dict()["loss"] == "focal-tversky"
    assert Settings().to_dict()["loss"] is None  # as in runs from before losses had names


def test_json():
    values = Settings(freeze="body", loss=torch.nn.functional.mse_loss, class_weights=(1, 2)).to_dict()
    assert json.loads(json.dumps(values)) == values
    assert values["loss"] == "torch.nn.functional.mse_loss"
    assert values["freeze"] == ["body"]
