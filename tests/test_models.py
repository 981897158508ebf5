"""Cards, models and what `load_model` takes and refuses."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

import dhlab
from dhlab.errors import BadFileError, BadShapeError, BadValueError, NotFoundError, UnknownNameError
from dhlab.models import ModelCard, create_model, load_model

CARD = ModelCard("m", "onnx", "segmentation", ("a", "b"), (8, 6), (1.0, 1.0), input_layout="channels_first")


def graph(
    path: Path,
    *,
    shape: tuple[int | str, ...] = ("batch", 3, 8, 6),
    kind: int = TensorProto.FLOAT,
    operator: str = "Conv",
    domain: str = "",
) -> Path:
    """Write a real ONNX file: a 1 × 1 convolution from 3 channels to 2 classes."""
    weight = np.arange(6, dtype=np.float32).reshape(2, 3, 1, 1) / 10
    node = helper.make_node(operator, ["x", "w"], ["y"], domain=domain)
    made = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (shape[0], 2, *shape[2:]))],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize(
    ("axes", "tile", "dtype", "value_range"),
    [
        ("yxc", (37, 64), "uint8", None),
        ("cyx", (16, 17), "uint16", None),
        ("yx", (33, 1), "uint8", None),
        ("zyx", (5, 17, 19), "int16", (-1000.0, 1000.0)),
        ("ct", (63,), "float32", None),
        ("t", (64,), "float32", (-1.0, 1.0)),
    ],
)
@pytest.mark.parametrize("name", ["unet", "cnn"])
def test_one_model_for_every_kind_of_scan(name, axes, tile, dtype, value_range) -> None:
    model = create_model(
        name, ["a", "b"], tile=tile, spacing=1.0, axes=axes, dtype=dtype, value_range=value_range, width=4
    ).eval()
    card = model.card
    windows = torch.from_numpy(np.random.default_rng(0).uniform(0, 200, (3, *card.window_shape)).astype(dtype))
    with torch.no_grad():
        scores = model(windows)
        np.testing.assert_allclose(model.activate(model.logits(windows)), scores)
    assert tuple(scores.shape) == (3, *card.output_shape)
    torch.testing.assert_close(scores.sum(dim=1), torch.ones_like(scores[:, 0]))
    assert repr(model).startswith(f"Model {name!r}")


def test_default_unet_is_compact() -> None:
    model = create_model("unet", ["a", "b", "c", "d"], tile=256, spacing=1.0)
    assert 0.3e6 <= sum(p.numel() for p in model.parameters()) <= 0.5e6
    assert model.card.tile == (256, 256)
    assert model.card.task == "segmentation"


def test_seed_alone_decides_the_weights() -> None:
    before = torch.random.get_rng_state()
    first, again, other = (create_model("unet", ["a"], tile=16, spacing=1.0, seed=s) for s in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


def test_one_class_is_a_sigmoid() -> None:
    model = create_model("cnn", ["tumour"], tile=16, spacing=1.0)
    assert model.card.activation == "sigmoid"
    with torch.no_grad():
        assert 0 < float(model.eval()(torch.zeros((1, 16, 16, 3), dtype=torch.uint8))) < 1


def test_normalisation_lives_inside() -> None:
    model = create_model("unet", ["a", "b"], tile=8, spacing=1.0, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7)).eval()
    seen = []
    model.net.register_forward_pre_hook(lambda _, given: seen.append(given[0].clone()))
    windows = torch.randint(0, 256, (2, 8, 8, 3), dtype=torch.uint8)
    model(windows)
    truth = (windows.double() / 255 - torch.tensor([0.1, 0.2, 0.3])) / torch.tensor([0.5, 0.6, 0.7])
    torch.testing.assert_close(seen[0], truth.movedim(-1, 1).float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "windows",
    [
        torch.zeros((1, 8, 8, 4), dtype=torch.uint8),
        torch.zeros((8, 8, 3), dtype=torch.uint8),
        torch.zeros((1, 8, 8, 3)),
    ],
)
def test_refuses_other_windows(windows: torch.Tensor) -> None:
    with pytest.raises(BadShapeError, match="expects"):
        create_model("unet", ["a"], tile=8, spacing=1.0)(windows)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"name": "unnet"}, UnknownNameError, "Did you mean 'unet'"),
        ({"task": "classification"}, BadValueError, "segmentation"),
        ({"dtype": "int16"}, BadValueError, "value_range"),
        ({"tile": (8, 8, 8)}, BadValueError, "tile"),
        ({"tile": 0}, BadValueError, "tile"),
        ({"spacing": float("nan")}, BadValueError, "spacing"),
        ({"spacing": -1.0}, BadValueError, "spacing"),
        ({"channels": 4, "mean": (0.5,) * 3}, BadValueError, "std"),
        ({"width": 0}, BadValueError, "width=0"),
        ({"depth": 9}, BadValueError, "depth=9"),
        ({"heads": 2}, BadValueError, "heads"),
        ({"classes": []}, BadValueError, "classes"),
        ({"classes": ["a", "a"]}, BadValueError, "distinct"),
    ],
)
def test_refuses_bad_arguments(arguments, error, match) -> None:
    arguments = {"name": "unet", "classes": ["a", "b"], "tile": 8, "spacing": 1.0} | arguments
    with pytest.raises(error, match=match):
        create_model(arguments.pop("name"), arguments.pop("classes"), **arguments)


def test_card_survives_json() -> None:
    card = replace(CARD, metrics={"dice": 0.9}, architecture_options={"width": 4})
    assert ModelCard.from_dict(json.loads(json.dumps(card.to_dict()))) == card


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"task": "detection"}, "task is 'detection'; expected one of segmentation, classification"),
        ({"classes": "ab"}, "classes is 'ab'"),
        ({"classes": [1]}, "classes"),
        ({"tile": [8]}, "tile is .8.; expected positive pixels"),
        ({"tile": [8.5, 8]}, "tile"),
        ({"spacing": [0, 1]}, "spacing"),
        ({"spacing": ["1", 1]}, "spacing"),
        ({"std": [1, 0, 1]}, "std"),
        ({"std": [1, 1]}, "std"),
        ({"value_range": [255, 0]}, "value_range"),
        ({"axes": "yxq"}, "axes"),
        ({"axes": "yyx"}, "axes"),
        ({"axes": 3}, "axes"),
        ({"dtype": "float16"}, "dtype"),
        ({"output_stride": 4}, "output_stride"),
        ({"output_stride": True}, "output_stride"),
        ({"name": ""}, "name"),
        ({"licence": None}, "licence"),
        ({"metrics": [1]}, "metrics"),
        ({"classe": ["a"]}, "unknown field 'classe'. Did you mean 'classes'"),
    ],
)
def test_card_names_what_is_wrong(change, match) -> None:
    with pytest.raises(BadValueError, match=match):
        ModelCard.from_dict(CARD.to_dict() | change)


def test_card_names_what_is_missing() -> None:
    values = CARD.to_dict()
    del values["tile"]
    with pytest.raises(BadValueError, match="tile missing"):
        ModelCard.from_dict(values)


@pytest.mark.parametrize("batch", ["batch", 1])
def test_onnx_from_elsewhere(tmp_path: Path, batch: int | str) -> None:
    card = tmp_path / "card.json"
    card.write_text(json.dumps(CARD.to_dict()))
    model = load_model(graph(tmp_path / "a b é.onnx", shape=(batch, 3, 8, 6)), card=card)
    windows = torch.randint(0, 256, (5, 8, 6, 3), dtype=torch.uint8)
    weight = torch.arange(6.0).view(2, 3) / 10
    logits = torch.einsum("kc,byxc->bkyx", weight, (windows / 255 - 0.5) / 0.25)
    torch.testing.assert_close(model(windows), logits.softmax(dim=1), rtol=1e-4, atol=1e-5)
    again = pickle.loads(pickle.dumps(model))
    assert torch.equal(again(windows), model(windows))


def test_onnx_that_takes_raw_values(tmp_path: Path) -> None:
    card = replace(CARD, value_range=(0.0, 1.0), mean=(0.0,) * 3, std=(1.0,) * 3, activation="none")
    model = load_model(graph(tmp_path / "m.onnx"), card=card)
    windows = torch.full((1, 8, 6, 3), 200, dtype=torch.uint8)
    assert model(windows)[0, :, 0, 0].tolist() == pytest.approx([60.0, 240.0])


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"operator": "Teleport"}, BadFileError, "operators that ONNX does not know: Teleport"),
        ({"operator": "Mish", "domain": "com.example"}, BadFileError, "cannot run"),
        ({"shape": ("b", 3, 9, 6)}, BadShapeError, r"takes tensor\(float\)"),
        ({"shape": ("b", 4, 8, 6)}, BadShapeError, "expects"),
        ({"shape": (2, 3, 8, 6)}, BadShapeError, "expects"),
        ({"kind": TensorProto.DOUBLE}, BadShapeError, "double"),
    ],
)
def test_refuses_graphs_that_do_not_fit(tmp_path: Path, change, error, match) -> None:
    if change.get("kind") == TensorProto.DOUBLE:
        path = _doubles(tmp_path / "m.onnx")
    else:
        path = graph(tmp_path / "m.onnx", **change)
    with pytest.raises(error, match=match):
        load_model(path, card=CARD)


def _doubles(path: Path) -> Path:
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    ends = [helper.make_tensor_value_info(n, TensorProto.DOUBLE, ("b", 3, 8, 6)) for n in "xy"]
    made = helper.make_graph(nodes, "g", ends[:1], ends[1:])
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def test_refuses_another_output(tmp_path: Path) -> None:
    with pytest.raises(BadShapeError, match="3 classes"):
        load_model(graph(tmp_path / "m.onnx"), card=replace(CARD, classes=("a", "b", "c")))
    with pytest.raises(BadShapeError, match="output_stride 2"):
        load_model(graph(tmp_path / "m.onnx"), card=replace(CARD, output_stride=2))


def test_refuses_weights_in_other_files(tmp_path: Path) -> None:
    model = onnx.load(graph(tmp_path / "m.onnx"))
    onnx.save(model, tmp_path / "e.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    with pytest.raises(BadFileError, match="other files"):
        load_model(tmp_path / "e.onnx", card=CARD)


@pytest.mark.parametrize("content", [b"", b"no onnx at all", None])
def test_refuses_damaged_graphs(tmp_path: Path, content: bytes | None) -> None:
    path = graph(tmp_path / "m.onnx")
    path.write_bytes(path.read_bytes()[:-20] if content is None else content)
    with pytest.raises(BadFileError, match=r"m\.onnx"):
        load_model(path, card=CARD)


def test_what_load_model_asks_for(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="nothing at"):
        load_model(tmp_path / "none")
    with pytest.raises(BadValueError, match="card="):
        load_model(graph(tmp_path / "m.onnx"))
    (tmp_path / "w.pt").write_bytes(b"x")
    with pytest.raises(BadFileError, match="pickles"):
        load_model(tmp_path / "w.pt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFoundError, match=r"config\.json"):
        load_model(tmp_path / "empty")
    (tmp_path / "card.json").write_text("[1, 2")
    with pytest.raises(BadFileError, match="no JSON"):
        load_model(tmp_path / "m.onnx", card=tmp_path / "card.json")
    (tmp_path / "card.json").write_text(json.dumps(CARD.to_dict() | {"task": "x"}))
    with pytest.raises(BadFileError, match=r"card\.json.*task"):
        load_model(tmp_path / "m.onnx", card=tmp_path / "card.json")


def test_public_names() -> None:
    assert dhlab.create_model is create_model
    assert dhlab.load_model is load_model


def test_a_model_shows_its_card_and_stays_as_it_is() -> None:
    model = create_model("unet", ["<b>", "dermis"], tile=32, spacing=0.5)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    page = model._repr_html_()
    assert page == model._repr_html_()
    assert "&lt;b&gt;, dermis" in page
    assert "Research use only" in page
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
