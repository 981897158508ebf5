"""Packages: what `export` writes runs elsewhere, and what was altered is refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

import dhlab.packaging
from dhlab.errors import BadFileError, BadShapeError, BadValueError, ConflictError, NotFoundError
from dhlab.models import Model, create_model, load_model
from dhlab.packaging import export


def lively(name: str = "unet", **arguments) -> Model:
    """Return a small model whose every weight and statistic differs from its start, so that a lost one shows."""
    settings = {"tile": (24, 37), "spacing": 0.5, "width": 4, "mean": (0.7, 0.5, 0.6), "std": (0.2, 0.3, 0.25)}
    model = create_model(name, ["gland", "stroma", "Fett ✓"], **(settings | arguments))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.rand(tensor.shape, generator=generator) * 0.3)
    return model


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(lively(), tmp_path_factory.mktemp("packages") / "a package é")


def copy(package: Path, target: Path) -> Path:
    target.mkdir()
    for file in package.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def test_holds_what_it_should(package: Path) -> None:
    names = ["README.md", "config.json", "example.npz", "model.onnx", "model.safetensors"]
    assert sorted(p.name for p in package.iterdir()) == names
    assert [p.name for p in package.parent.iterdir()] == [package.name]
    config = json.loads((package / "config.json").read_text(encoding="utf-8"))
    assert config["card"]["classes"] == ["gland", "stroma", "Fett ✓"]
    assert config["card"]["created"]
    for name, expected in config["sha256"].items():
        assert hashlib.sha256((package / name).read_bytes()).hexdigest() == expected
    readme = (package / "README.md").read_text(encoding="utf-8")
    assert readme.startswith("---\nlicense:")
    assert "0.5 × 0.5 µm/px" in readme


def test_weights_return(package: Path) -> None:
    model, again = lively().eval(), load_model(package)
    windows = torch.randint(0, 256, (3, 24, 37, 3), dtype=torch.uint8)
    assert torch.equal(model(windows), again(windows))
    assert not again.training


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_graph_runs_alone_on_stored_windows(package: Path, batch: int) -> None:
    """onnxruntime without dhlab: uint8 in, scores out, any batch."""
    session = onnxruntime.InferenceSession(package / "model.onnx", providers=["CPUExecutionProvider"])
    windows = np.random.default_rng(batch).integers(0, 256, (batch, 24, 37, 3)).astype(np.uint8)
    (scores,) = session.run(None, {"windows": windows})
    with torch.no_grad():
        truth = lively().eval()(torch.from_numpy(windows)).numpy()
    assert truth.std() > 0.01
    np.testing.assert_allclose(scores, truth, atol=1e-5)


def test_example_repeats(package: Path) -> None:
    example = np.load(package / "example.npz")
    with torch.no_grad():
        scores = load_model(package)(torch.from_numpy(example["windows"])).numpy()
    np.testing.assert_allclose(scores, example["scores"], atol=1e-6)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("cnn", {}),
        ("cnn", {"axes": "ct", "tile": 63, "dtype": "float32", "mean": (0.5,), "std": (0.2,), "channels": 1}),
        (
            "unet",
            {"axes": "zyx", "tile": (5, 17, 9), "dtype": "int16", "value_range": (-1000, 1000), "mean": (0.4,)}
            | {"std": (0.2,)},
        ),
    ],
)
def test_every_kind_of_model(tmp_path: Path, name: str, arguments: dict) -> None:
    folder = export(lively(name, **arguments), tmp_path / "p")
    card = load_model(folder).card
    graph = load_model(folder / "model.onnx", card=folder / "config.json")
    example = np.load(folder / "example.npz")
    assert example["windows"].dtype == card.dtype
    np.testing.assert_allclose(graph(torch.from_numpy(example["windows"])).numpy(), example["scores"], atol=1e-4)


def test_the_model_stays_as_it_is(tmp_path: Path) -> None:
    model = lively().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    windows = np.random.default_rng(0).integers(0, 256, (1, 24, 37, 3)).astype(np.uint8)
    export(model, tmp_path / "p", example=windows)
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    np.testing.assert_array_equal(np.load(tmp_path / "p" / "example.npz")["windows"], windows)


def test_never_replaces_unasked(package: Path) -> None:
    before = (package / "config.json").read_bytes()
    with pytest.raises(ConflictError, match="overwrite=True"):
        export(lively(), package)
    assert (package / "config.json").read_bytes() == before


def test_overwrites_when_asked(package: Path, tmp_path: Path) -> None:
    folder = copy(package, tmp_path / "p")
    (folder / "stray").touch()
    export(lively("cnn"), folder, overwrite=True)
    assert load_model(folder).card.architecture == "cnn"
    assert not (folder / "stray").exists()


def test_refuses_an_example_that_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(BadShapeError, match="example"):
        export(lively(), tmp_path / "p", example=np.zeros((1, 24, 37, 4), np.uint8))
    assert list(tmp_path.iterdir()) == []


def test_an_unfaithful_graph_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison decides: here the graph is written of other weights."""
    write = dhlab.packaging._write_graph
    monkeypatch.setattr(dhlab.packaging, "_write_graph", lambda model, *rest: write(create_like(model).eval(), *rest))

    def create_like(model: Model) -> Model:
        return Model(create_model("unet", model.card.classes, tile=(24, 37), spacing=0.5, width=4).net, model.card)

    with pytest.raises(BadValueError, match="onnxruntime differs"):
        export(lively(), tmp_path / "p")
    assert list(tmp_path.iterdir()) == []


def test_refuses_weights_that_are_not_finite(tmp_path: Path) -> None:
    model = lively()
    with torch.no_grad():
        model.net.head.bias.fill_(float("nan"))
    with pytest.raises(BadValueError, match="not finite"):
        export(model, tmp_path / "p")
    assert list(tmp_path.iterdir()) == []


def test_a_graph_is_no_model_to_export(package: Path, tmp_path: Path) -> None:
    graph = load_model(package / "model.onnx", card=package / "config.json")
    with pytest.raises(BadValueError, match="ONNX graph already"):
        export(graph, tmp_path / "p")


@pytest.mark.parametrize("name", ["model.safetensors", "model.onnx", "example.npz"])
def test_refuses_an_altered_file(package: Path, tmp_path: Path, name: str) -> None:
    folder = copy(package, tmp_path / "p")
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(BadFileError, match="altered or damaged"):
        load_model(folder)


def test_refuses_a_missing_file(package: Path, tmp_path: Path) -> None:
    folder = copy(package, tmp_path / "p")
    (folder / "model.safetensors").unlink()
    with pytest.raises(NotFoundError, match="lacks"):
        load_model(folder)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"format_version": 99}, "Upgrade dhlab"),
        ({"format_version": None}, "format_version"),
        ({"card": None}, "model card"),
        ({"sha256": {}}, "checksum"),
        ({"sha256": {"../secret": "0", "model.safetensors": "0"}}, "of the package itself"),
    ],
)
def test_refuses_a_bad_configuration(package: Path, tmp_path: Path, change: dict, match: str) -> None:
    folder = copy(package, tmp_path / "p")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8")) | change
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadFileError, match=match):
        load_model(folder)


def test_refuses_weights_of_another_network(package: Path, tmp_path: Path) -> None:
    folder = copy(package, tmp_path / "p")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["card"]["architecture_options"] = {"width": 5}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadFileError, match="does not fit the card"):
        load_model(folder)
