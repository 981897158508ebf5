"""Packages: what `export` writes runs elsewhere, and what was altered is refused."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import yaml
from huggingface_hub import ModelCard as HubCard
from PIL import Image
from torch import nn

import dhlab.packaging
from dhlab.errors import BadFileError, BadShapeError, BadValueError, ConflictError, NotFoundError
from dhlab.models import Model, create_model, load_model
from dhlab.packaging import export
from dhlab.report import Report


def lively(name: str = "unet", **arguments) -> Model:
    """Return a small model whose every weight and statistic differs from its start, so that a lost one shows."""
    settings = {
        "tile": (24, 37),
        "spacing": 0.5,
        "width": 4,
        "depth": 2,
        "mean": (0.7, 0.5, 0.6),
        "std": (0.2, 0.3, 0.25),
    }
    model = create_model(name, ["gland", "stroma", "Fett ✓"], **(settings | arguments))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                change = torch.rand(tensor.shape, generator=generator)
                tensor.mul_(0.7 + 0.6 * change).add_(0.01 * change)
    return model


def numbers(means: tuple[float, ...], spreads: tuple[float, ...], **changes) -> Model:
    """Return a regression whose numbers live on the scales given."""
    names = tuple(f"number {i}" for i in range(3))
    model = create_model("cnn", names, tile=(24, 37), spacing=0.5, width=4, depth=2)
    card = replace(model.card, task="regression", activation="none")
    return Model(model.net, replace(card, target_mean=means, target_std=spreads, **changes))


@pytest.fixture(scope="module")
def bags() -> Model:
    """Return a model of bags of instances with 5 features."""
    settings = {"axes": "ic", "dtype": "float32", "channels": 5, "tile": 1, "spacing": 1.0, "width": 8}
    model = create_model("attention-mil", ["benign", "malignant"], unit="px", **settings).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return model


REPORT = Report(
    "unet on held-out slides",
    summary="Mean Dice 0.871 on 41 patients.",
    values={"mean Dice": 0.8712, "HD95 | µm": 1234.4, "accuracy": float("nan")},
    intervals={"mean Dice": (0.8, 0.93)},
    baseline={"mean Dice": 0.31},
    n={"mean Dice": 41},
    notes=["Only one scanner."],
    provenance={"unit": "patient"},
)


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
    assert "example.png" not in (package / "README.md").read_text(encoding="utf-8"), "noise is not worth a picture"
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


def snippets(folder: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)


def test_what_the_readme_says_runs(package: Path) -> None:
    """Both snippets, as a reader would run them in the folder."""
    ours, alone = snippets(package)
    assert "dhlab" not in alone
    for code in (ours, alone):
        done = subprocess.run([sys.executable, "-c", code], cwd=package, capture_output=True, text=True, check=True)
        assert "Fett ✓" in done.stdout
        assert "(2, 3, 24, 37)" in done.stdout
    assert float(done.stdout.split()[-1]) < 1e-4


WORDS = {
    "intended_use": "For nobody.",
    "limits": "Fails: everywhere.",
    "data": "# None",
    "licence": "Apache-2.0",
    "base_model": "Weights that fell from the sky",
    "authors": "A | B",
    "citation": "A and B, In the clouds, 2026.",
}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a package whose card says all it can, with a report and a real example."""
    model = lively("cnn")
    model.card = replace(model.card, metrics={"AUC | mine": "0.9 on few"}, **WORDS)
    windows = np.full((6, 24, 37, 3), (10, 200, 30), np.uint8)
    return export(model, tmp_path_factory.mktemp("told") / "p", report=REPORT, example=windows)


def test_the_hub_reads_the_card_with_the_figures(told: Path, package: Path) -> None:
    data = HubCard.load(told / "README.md").data
    assert (data.license, data.library_name, data.pipeline_tag) == ("apache-2.0", "dhlab", "image-classification")
    assert {"dhlab", "classification", "onnx"} <= set(data.tags)
    found = {result.metric_name: result.metric_value for result in data.eval_results}
    assert found == {"mean Dice": 0.871, "HD95 | µm": 1234, "AUC | mine": 0.9, "accuracy": "not defined"}
    silent = HubCard.load(package / "README.md").data
    assert (silent.license, silent.pipeline_tag, silent.eval_results) == ("unknown", "image-segmentation", None)


def test_figures_of_a_report_enter_card_and_readme(told: Path, package: Path) -> None:
    metrics = load_model(told).card.metrics
    assert metrics["mean Dice"] == "0.871 (0.800 to 0.930), n=41 patients"
    assert metrics["AUC | mine"] == "0.9 on few"
    text = (told / "README.md").read_text(encoding="utf-8")
    assert "| mean Dice | 0.871 | 0.800 to 0.930 | 0.310 | 41 |" in text
    assert r"| HD95 \| µm | 1,234 |" in text
    assert r"| AUC \| mine | 0.9 on few |" in text
    assert "- Only one scanner." in text
    assert "Not stated." in (package / "README.md").read_text(encoding="utf-8").split("## Metrics")[1]


def test_the_readme_says_what_the_card_says(told: Path) -> None:
    text = (told / "README.md").read_text(encoding="utf-8")
    assert all(word.replace("|", r"\|") in text for word in WORDS.values())


def test_a_licence_of_ones_own_has_a_name() -> None:
    card = replace(lively().card, licence="in-house: ask")
    front = yaml.safe_load(dhlab.packaging._front_matter(card, None))
    assert (front["license"], front["license_name"]) == ("other", "in-house: ask")


def test_a_real_example_is_shown(told: Path, tmp_path: Path) -> None:
    picture = np.asarray(Image.open(told / "example.png"))
    np.testing.assert_array_equal(picture, np.broadcast_to(np.uint8([10, 200, 30]), picture.shape))
    assert "(example.png)" in (told / "README.md").read_text(encoding="utf-8")
    folder = copy(told, tmp_path / "p")
    (folder / "example.png").write_bytes(b"")
    with pytest.raises(BadFileError, match="altered or damaged"):
        load_model(folder)


def test_exports_of_one_model_are_the_same_bytes(package: Path, tmp_path: Path) -> None:
    again = export(lively(), tmp_path / "p")
    for name in ("model.safetensors", "model.onnx", "example.npz"):
        assert (again / name).read_bytes() == (package / name).read_bytes(), name
    assert str(Path(__file__).parents[1]).encode() not in (again / "model.onnx").read_bytes()


def test_bags_of_any_size(tmp_path: Path, bags: Model) -> None:
    folder = export(bags, tmp_path / "p")
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    random = np.random.default_rng(0)
    for batch, instances in ((1, 1), (1, 63), (3, 7)):
        x = random.normal(size=(batch, instances, 5)).astype(np.float32)
        x[-1, max(1, instances // 2) :] = np.nan
        (scores,) = session.run(None, {"windows": x})
        with torch.inference_mode():
            np.testing.assert_allclose(scores, bags(torch.from_numpy(x)).numpy(), atol=1e-5)
    assert np.isnan(np.load(folder / "example.npz")["windows"]).any(), "padding must be part of the comparison"
    assert sorted(p.name for p in folder.glob("*.png")) == []
    done = subprocess.run([sys.executable, "-c", snippets(folder)[1]], cwd=folder, capture_output=True, check=True)
    assert b"malignant" in done.stdout


def test_bags_of_one_instance_and_of_none(tmp_path: Path, bags: Model) -> None:
    export(bags, tmp_path / "p", example=np.zeros((1, 1, 5), np.float32))
    with pytest.raises(BadShapeError, match="N, 5"):
        export(bags, tmp_path / "q", example=np.zeros((1, 0, 5), np.float32))


def test_every_task(tmp_path: Path) -> None:
    model = lively("cnn")
    several = Model(model.net, replace(model.card, task="multilabel", activation="sigmoid"))
    assert load_model(export(several, tmp_path / "several")).card.task == "multilabel"
    amounts = numbers((1e6, 0.0, 40.0), (3e4, 1e-6, 9.0))
    folder = export(amounts, tmp_path / "amounts")
    windows = torch.randint(0, 256, (2, 24, 37, 3), dtype=torch.uint8)
    assert torch.equal(load_model(folder)(windows), amounts.eval()(windows))
    assert HubCard.load(folder / "README.md").data.pipeline_tag == "other"


def test_differences_count_on_the_scale_of_a_regression(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph that is 1 % of a spread off is refused, however small the numbers are beside others."""
    write = dhlab.packaging._write_graph

    def write_another(model: Model, *rest) -> None:
        net = nn.Sequential(model.net, Shift(torch.tensor([0.0, 0.01, 0.0])))
        write(Model(net, model.card).eval(), *rest)

    monkeypatch.setattr(dhlab.packaging, "_write_graph", write_another)
    with pytest.raises(BadValueError, match=r"onnxruntime differs .* by 0\.01"):
        export(numbers((0.0, 0.0, 0.0), (1e5, 1e-6, 1.0)), tmp_path / "p")


class Shift(nn.Module):
    def __init__(self, amount: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("amount", amount)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.amount


def test_refuses_weights_of_another_shape(package: Path, tmp_path: Path) -> None:
    """Even if the checksum was made to fit."""
    from safetensors.torch import load_file, save_file

    folder = copy(package, tmp_path / "p")
    weights = load_file(folder / "model.safetensors")
    weights["net.head.bias"] = torch.zeros(7)
    save_file(weights, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["sha256"]["model.safetensors"] = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadFileError, match=r"net\.head\.bias"):
        load_model(folder)


def test_never_replaces_unasked(package: Path) -> None:
    before = (package / "config.json").read_bytes()
    with pytest.raises(ConflictError, match="overwrite=True"):
        export(lively(), package)
    assert (package / "config.json").read_bytes() == before


def test_overwrites_when_asked(package: Path, tmp_path: Path) -> None:
    folder = copy(package, tmp_path / "p")
    (folder / "stray").touch()
    model = lively("cnn").train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    export(model, folder, overwrite=True)
    assert load_model(folder).card.architecture == "cnn"
    assert not (folder / "stray").exists()
    # And the model stays as it is.
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_refuses_an_example_that_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(BadShapeError, match="example"):
        export(lively(), tmp_path / "p", example=np.zeros((1, 24, 37, 4), np.uint8))
    assert list(tmp_path.iterdir()) == []


def test_an_unfaithful_graph_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison decides: here the graph is written of other weights."""
    write = dhlab.packaging._write_graph
    monkeypatch.setattr(dhlab.packaging, "_write_graph", lambda model, *rest: write(create_like(model).eval(), *rest))

    def create_like(model: Model) -> Model:
        options = model.card.architecture_options
        return Model(create_model("unet", model.card.classes, tile=(24, 37), spacing=0.5, **options).net, model.card)

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
        ({"sha256": {"/etc/hostname": "0", "model.safetensors": "0"}}, "of the package itself"),
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
