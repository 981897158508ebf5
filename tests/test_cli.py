"""The command line, as a person calls it: exit codes, JSON, clear errors."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dhlab.cli import main


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    pixels = np.full((300, 400, 3), 244, np.uint8)
    pixels[80:220, 100:300] = (170, 80, 140)
    pixels[100:200:7, 110:290:5] = (90, 40, 120)
    path = tmp_path / "tissue piece 😀.png"
    Image.fromarray(pixels).save(path)
    return path


def run(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, object]:
    assert main([*map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_info_says_size_and_spacing(capsys: pytest.CaptureFixture[str], picture: Path) -> None:
    facts = run(capsys, "info", picture, "--spacing", 2)
    assert facts["shape"] == [300, 400]
    assert facts["spacing"] == [2.0, 2.0]
    assert facts["unit"] == "µm"
    assert facts["spacing_source"] == "override"
    assert "path" not in facts


def test_info_prints_text_for_people(capsys: pytest.CaptureFixture[str], picture: Path) -> None:
    assert main(["info", str(picture)]) == 0
    text = capsys.readouterr().out
    assert "shape: 300, 400" in text
    assert "levels" in text


@pytest.mark.parametrize("name", ["mask.ome.zarr", "mask.png", "mask.geojson"])
def test_tissue_finds_the_piece(capsys: pytest.CaptureFixture[str], picture: Path, tmp_path: Path, name: str) -> None:
    result = run(capsys, "tissue", picture, "--spacing", 2, "-o", tmp_path / name)
    truth = 140 * 200 / (300 * 400)
    assert abs(float(str(result["tissue_share"])) - truth) < 0.05
    assert (tmp_path / name).exists()
    assert main(["tissue", str(picture), "--spacing", "2", "-o", str(tmp_path / name)]) == 1
    assert "exists already" in capsys.readouterr().err
    run(capsys, "tissue", picture, "--spacing", 2, "-o", tmp_path / name, "--overwrite")


def test_convert_keeps_the_pixels(capsys: pytest.CaptureFixture[str], picture: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy.ome.zarr"
    result = run(capsys, "convert", picture, "-o", out, "--tile", 64, "--quiet")
    assert int(str(result["files"])) > 0
    back = tmp_path / "back.png"
    run(capsys, "convert", out, "-o", back, "--quiet")
    np.testing.assert_array_equal(np.asarray(Image.open(back)), np.asarray(Image.open(picture)))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["info", "no such file.svs"], "nothing at"),
        (["info", __file__], "no reader for '.py'"),
        (["sample", "skin-slid"], "skin-slide"),
    ],
)
def test_errors_say_what_to_do_and_end_with_1(
    capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main(words) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_wrong_usage_ends_with_2() -> None:
    with pytest.raises(SystemExit) as stop:
        main(["predict"])
    assert stop.value.code == 2


COMMANDS = ("info", "tissue", "convert", "predict", "report", "sample", "doctor", "demo")


@pytest.mark.parametrize("words", [[], *([command] for command in COMMANDS)])
def test_every_command_has_help(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*words, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "usage: dhlab" in text
    assert len(text) > 150


def test_samples_are_listed_with_their_licence(capsys: pytest.CaptureFixture[str]) -> None:
    table = run(capsys, "sample")
    assert "CC0" in str(table["skin-slide"])


def test_doctor_tells_of_this_machine(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    found = run(capsys, "doctor", "--folder", tmp_path)
    checks = {row["check"]: row for row in found["checks"]}  # type: ignore[attr-defined] # JSON of any kind
    assert checks["JPEG"]["state"] == "ok"
    assert checks["atomic rename"]["state"] == "ok"
    assert checks["python"]["detail"].startswith(".".join(map(str, sys.version_info[:2])))
    assert list(tmp_path.iterdir()) == []
    assert main(["doctor", "--folder", str(tmp_path)]) == 0
    assert "checks" in capsys.readouterr().out


def test_runs_as_a_module_with_its_version() -> None:
    done = subprocess.run([sys.executable, "-m", "dhlab", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("dhlab ")


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """Pictures of two classes by ten patients, in a folder per class."""
    rng = np.random.default_rng(0)
    for number in range(40):
        kind = number % 2
        place = tmp_path / "pictures" / ("red", "blue")[kind]
        place.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(60, 180, (24, 24, 3))
        pixels[..., 2 * kind] += 60
        Image.fromarray(pixels.astype(np.uint8)).save(place / f"P{number // 4}_{number}.png")
    return tmp_path / "pictures"


TRAIN = ("--data", r"patient=(P\d+)_", "--model", "width=6", "depth=2", "--fit", "epochs=4", "batch_size=4")


def test_train_evaluate_export(capsys: pytest.CaptureFixture[str], classes: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    trained = run(capsys, "train", classes, "-m", "cnn", "-o", out, *TRAIN, "--quiet")
    assert (out / "training.html").exists()
    assert "validation balanced accuracy" in trained
    again = run(capsys, "train", classes, "-m", "cnn", "-o", out, *TRAIN, "--quiet")
    assert again == trained
    same = run(
        capsys, "train", classes, "-m", "cnn", "-o", tmp_path / "other", "--run", out / "command.json", "--quiet"
    )
    assert same["training loss"] == trained["training loss"]

    judged = run(capsys, "evaluate", classes, "-m", out, "-o", tmp_path / "judged.html", "--quiet")
    assert 0 <= float(str(judged["AUC"])) <= 1
    package = tmp_path / "packages" / "one"
    words = ("--report", tmp_path / "judged.json", "--card", "name=red or blue", "licence=CC0-1.0")
    run(capsys, "export", out, "-o", package, *words)
    assert "AUC" in (package / "README.md").read_text("utf-8")
    card = json.loads((package / "config.json").read_text("utf-8"))["card"]
    assert (card["name"], card["licence"], card["classes"]) == ("red or blue", "CC0-1.0", ["blue", "red"])
    packaged = run(capsys, "evaluate", classes, "-m", package, "-o", tmp_path / "packaged.html", "--quiet", *TRAIN[:2])
    assert set(packaged) == set(judged)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--fit", "epoch=3"), r"--fit epoch: fit has no such argument.*epochs"),
        (("--data", "patients=x"), r"--data patients: from_folder has no such argument.*patient"),
        (("--fit", "epochs"), "expected NAME=VALUE"),
        (("--fit", "epochs=0"), "epochs is 0; expected"),
        (("--run", "nowhere.json"), "expected JSON with the tables"),
    ],
)
def test_train_says_what_is_wrong(capsys, classes: Path, tmp_path: Path, words: tuple[str, ...], told: str) -> None:
    import re

    assert main(["train", str(classes), "-m", "cnn", "-o", str(tmp_path / "run"), "--quiet", *words]) == 1
    assert re.search(told, capsys.readouterr().err)
    assert main(["train", str(classes / "no.txt"), "-m", "cnn", "-o", str(tmp_path / "run")]) == 1
    assert "a folder of classes, a table" in capsys.readouterr().err


def test_train_with_a_file_of_augmentations(capsys: pytest.CaptureFixture[str], classes: Path, tmp_path: Path) -> None:
    text, out = tmp_path / "augment.txt", tmp_path / "run"
    text.write_text("SequentialAugmentationContainer\n  AugMirror p=0.5\n  AugBrightness beta=[-9,9]\nend\n")
    words = ("train", classes, "-m", "cnn", "-o", out, *TRAIN, "--quiet")
    trained = run(capsys, *words, "--augment", text)
    described = json.loads((out / "command.json").read_text("utf-8"))["fit"]["augment"]
    assert [step["transform"] for step in described["steps"]] == ["Mirror", "Brightness"]
    again = run(capsys, *words[:5], tmp_path / "other", "--run", out / "command.json", "--quiet")
    assert again["training loss"] == trained["training loss"]
    text.write_text("AugMirro p=0.5\n")
    assert main([*map(str, words), "--augment", str(text)]) == 1
    assert "Did you mean 'AugMirror'" in capsys.readouterr().err


def test_a_reader_that_has_enough_ends_the_command_quietly() -> None:
    command = f"{sys.executable} -m dhlab doctor --json | head -c 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "{", "")
