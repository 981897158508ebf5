"""`open` and `save`: what is not there, not known, empty, misnamed or forbidden is said so that one can act."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest
from PIL import Image

import dhlab.io as dio
from dhlab import phantoms
from dhlab.errors import (
    BadFileError,
    BadValueError,
    ConflictError,
    DHLabError,
    NotFoundError,
    StorageError,
    UnknownNameError,
)
from dhlab.scan import Scan

SCAN = Scan.from_array(np.random.default_rng(2).integers(0, 255, (63, 127, 3), np.uint8), "yxc", spacing=0.5, unit="µm")
AWKWARD = [
    "two words.png",
    "Präparat №7 (Kopie).ome.tif",
    "🔬 slide.svs",
    "a.b.c.tiff",
    "UPPER.SVS",
    "-dash.tif",
    "%41.png",
]


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    image = np.asarray(phantoms.paint_slide((301, 403), rng=5)[0])
    return phantoms.write_slide(tmp_path_factory.mktemp("a") / "a.svs", image, tile=64, levels=(1,))


@pytest.mark.parametrize("name", AWKWARD)
def test_awkward_names(tmp_path, slide, name):
    path = tmp_path / "Ordner mit Leerzeichen 🧪" / name
    path.parent.mkdir()
    if name.endswith(".png"):
        Image.fromarray(SCAN.levels[0][...]).save(path)
    else:
        path.write_bytes(slide.read_bytes())
    scan = dio.open(str(path))
    assert scan.levels[0][...].std() > 0
    assert pickle.loads(pickle.dumps(scan)).read((0, 0), (5, 5)).shape == (5, 5, 3)
    assert scan.name
    assert not scan.name.lower().endswith((".svs", ".tif", ".png"))


@pytest.mark.parametrize("name", ["ü ber.png", "🔬.ome.tif", "two words.ome.tif"])
def test_awkward_names_can_be_written(tmp_path, name):
    path = dio.save(SCAN, tmp_path / name)
    assert path.name == name
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert dio.open(path).shape == (63, 127)


def test_the_users_home_is_understood(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    dio.save(SCAN, "~/a.png")
    assert dio.open("~/a.png").shape == (63, 127)


def test_missing_file_names_its_neighbours(tmp_path):
    dio.save(SCAN, tmp_path / "b.png")
    with pytest.raises(NotFoundError, match=r"b\.png") as caught:
        dio.open(tmp_path / "a.png")
    assert isinstance(caught.value, FileNotFoundError)
    with pytest.raises(NotFoundError, match="does not exist either"):
        dio.open(tmp_path / "no" / "a.png")


@pytest.mark.parametrize("name", ["a.svss", "a", "a.doc", ".svs.bak"])
def test_unknown_suffix(tmp_path, name):
    (tmp_path / name).write_bytes(b"II*\0")
    with pytest.raises(UnknownNameError, match="no reader"):
        dio.open(tmp_path / name)


def test_a_near_miss_is_suggested(tmp_path):
    (tmp_path / "a.svss").write_bytes(b"II*\0")
    with pytest.raises(UnknownNameError, match=r"Did you mean .*\.svs"):
        dio.open(tmp_path / "a.svss")


@pytest.mark.parametrize("suffix", sorted(s for s in dio.READERS if "zarr" not in s))
@pytest.mark.parametrize(
    "content", [b"", b"\0", b"hello, I am a text\n" * 50, b"II*\0", b"MM\0+\0\x08\0\0", b"\xff\xd8\xff\xe0"]
)
def test_files_that_are_not_what_their_suffix_says(tmp_path, suffix, content):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    with pytest.raises(BadFileError) as caught:
        dio.open(path)
    assert path.name in str(caught.value)
    assert len(str(caught.value)) > 40


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "PNG"),
        (b"<html>not found</html>", "HTML"),
        (b"PK\x03\x04" + bytes(50), "ZIP"),
    ],
)
def test_well_known_content_is_named(tmp_path, content, word):
    (tmp_path / "a.svs").write_bytes(content)
    with pytest.raises(BadFileError, match=word):
        dio.open(tmp_path / "a.svs")


@pytest.mark.parametrize("suffix", [".svs", ".png", ".ndpi"])
def test_folder_in_a_files_clothes(tmp_path, suffix):
    (tmp_path / f"a{suffix}").mkdir()
    with pytest.raises(DHLabError):
        dio.open(tmp_path / f"a{suffix}")


@pytest.mark.parametrize("spacing", [0, -0.25, float("nan"), float("inf"), (0.5, -1), (0, 0)])
def test_senseless_spacing(tmp_path, slide, spacing):
    path = dio.save(SCAN, tmp_path / "a.png")
    for file in (path, slide):
        with pytest.raises(BadValueError, match="spacing"):
            dio.open(file, spacing=spacing)


def test_unreadable_file(tmp_path, slide):
    path = tmp_path / "a.svs"
    path.write_bytes(slide.read_bytes())
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(BadFileError, match="permissions"):
        dio.open(path)


def test_nothing_is_overwritten_unless_asked(tmp_path):
    path = dio.save(SCAN, tmp_path / "a.png")
    before = path.read_bytes()
    with pytest.raises(ConflictError, match="overwrite=True"):
        dio.save(SCAN.replace(name="b"), path)
    assert path.read_bytes() == before
    dio.save(SCAN, path, overwrite=True)


@pytest.mark.parametrize("name", ["a.ome.tif", "a.png"])
def test_read_only_folder(tmp_path, name):
    folder = tmp_path / "closed"
    folder.mkdir()
    folder.chmod(0o500)
    try:
        if os.access(folder, os.W_OK):
            pytest.skip("this user may write everywhere")
        with pytest.raises(StorageError, match="may not write"):
            dio.save(SCAN, folder / name)
    finally:
        folder.chmod(0o700)
    assert not list(folder.iterdir())


def test_missing_folder(tmp_path):
    for name in ("a.ome.tif", "a.png"):
        with pytest.raises(NotFoundError):
            dio.save(SCAN, tmp_path / "no" / name)


def test_unknown_suffix_and_senseless_tile_when_saving(tmp_path):
    with pytest.raises(UnknownNameError, match="no writer"):
        dio.save(SCAN, tmp_path / "a.svs")
    with pytest.raises(BadValueError, match="tile 0"):
        dio.save(SCAN, tmp_path / "a.ome.tif", tile=0)


def test_name_is_the_files_unless_given(slide):
    assert dio.open(slide).name == "a"
    assert dio.open(slide, name="case 7").name == "case 7"


def test_an_installed_package_adds_a_reader(tmp_path, monkeypatch):
    info = tmp_path / "acme-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[dhlab.readers]\n.acme = acme_reader:read\n")
    (tmp_path / "acme_reader.py").write_text(
        "import numpy as np\n"
        "from dhlab import Scan\n"
        "def read(path, *, spacing, icc, series):\n"
        "    pixels = np.frombuffer(path.read_bytes(), np.uint8).reshape(2, 3)\n"
        "    return Scan.from_array(pixels, 'yx', spacing=spacing or 1.0)\n"
    )
    (tmp_path / "scan.acme").write_bytes(bytes(range(6)))
    monkeypatch.syspath_prepend(tmp_path)
    dio._readers.cache_clear()
    try:
        scan = dio.open(tmp_path / "scan.acme", spacing=2)
        assert scan.levels[0][1, 2] == 5
        assert (scan.name, scan.spacing) == ("scan", (2.0, 2.0))
    finally:
        dio._readers.cache_clear()
