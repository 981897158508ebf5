"""Samples: order of places, provenance, and errors that help."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from dhlab import env, samples
from dhlab.errors import BadFileError, BadValueError, NotFoundError, StorageError, UnknownNameError
from dhlab.phantoms import VERSION
from dhlab.samples import IN_MEMORY, PHANTOMS, SAMPLES, sample, sample_path


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DHLAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """Return a data folder that is empty, with nothing unpacked from packages either."""
    folder = tmp_path / "data"
    folder.mkdir()
    monkeypatch.setenv("DHLAB_DATA", str(folder))
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "prefix"))
    return folder


def test_every_entry_says_what_it_is_and_how_to_get_it():
    rows = samples.samples()
    assert [row["name"] for row in rows] == list(SAMPLES)
    for row in rows:
        assert all(row[key] for key in ("what", "modality", "licence", "source", "how")), row
    generated = {name for name, entry in SAMPLES.items() if not entry.path}
    assert generated == set(PHANTOMS) | set(IN_MEMORY)
    assert all(row["there"] for row in rows if row["name"] in generated)


def test_unknown_name_suggests_close_ones():
    with pytest.raises(UnknownNameError, match="skin-slide"):
        sample("skin-slid")


def test_absent_sample_names_licence_source_and_how(nowhere):
    with pytest.raises(NotFoundError, match=r"CC0 1\.0.*Carnegie Mellon.*binder/install\.sh.*DHLAB_DATA"):
        sample("skin-slide")
    with pytest.raises(NotFoundError, match=r"CC BY 4\.0.*EBHI-Seg.*DHLAB_DATA"):
        sample_path("colon-polyp")
    there = {row["name"]: row["there"] for row in samples.samples()}
    assert not there["skin-slide"]
    assert not there["colon-polyp"]


def test_a_file_that_is_not_the_sample_is_refused(nowhere):
    path = nowhere / SAMPLES["skin-slide"].path
    path.parent.mkdir(parents=True)
    path.write_bytes(b"not the slide")
    with pytest.raises(BadFileError, match="sha256"):
        sample_path("skin-slide")


def test_data_folder_wins_over_packages(tmp_path, monkeypatch, nowhere):
    entry = samples.Sample("x", "w", "m", "l", "s", "a/b.png", "b.png")
    shipped = tmp_path / "prefix" / "share" / "dhlab" / "samples" / "b.png"
    shipped.parent.mkdir(parents=True)
    shipped.write_bytes(b"1")
    monkeypatch.setitem(SAMPLES, "x", entry)
    assert sample_path("x") == shipped
    (nowhere / "a").mkdir()
    (nowhere / "a" / "b.png").write_bytes(b"2")
    assert sample_path("x") == nowhere / "a" / "b.png"


def test_phantoms_are_written_once_and_kept_by_version(cache):
    path = sample_path("phantom-no-spacing")
    assert path.parent == cache / "samples" / f"v{VERSION}"
    before = path.stat().st_mtime_ns
    assert sample_path("phantom-no-spacing").stat().st_mtime_ns == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # nothing half-written is left


def test_cache_that_cannot_be_written_says_so(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("DHLAB_CACHE", str(tmp_path / "file"))
    with pytest.raises(StorageError, match="DHLAB_CACHE"):
        sample_path("phantom-generic")


def test_a_sample_in_memory_has_no_file():
    with pytest.raises(BadValueError, match="phantom-ct"):
        sample_path("phantom-ct")


@pytest.mark.parametrize("name", sorted(IN_MEMORY))
def test_samples_in_memory_open_with_provenance(name):
    scan = sample(name)
    about = scan.meta["sample"]
    assert about["name"] == name
    assert about["origin"] == "generated"
    assert about["licence"] == SAMPLES[name].licence
    assert np.asarray(scan.levels[0][...]).std() > 0
    if name.endswith("-labels"):
        truth = np.asarray(scan.levels[0][...])
        assert scan.kind == "labels"
        assert truth.max() == len(scan.meta["classes"])
        assert scan.parent.shape == scan.shape


def test_phantom_slide_opens_and_fits_its_label_map(cache):
    slide, labels = sample("phantom-slide"), sample("phantom-slide-labels")
    assert slide.shape == labels.shape == labels.parent.shape
    assert slide.spacing == pytest.approx((0.5, 0.5))
    assert slide.unit == "µm"
    assert max(slide.scales[-1]) == 16
    assert slide.name == labels.parent.name
    image, truth = np.asarray(slide.levels[0][...]), np.asarray(labels.levels[0][...])
    dark = 255 - image.mean(-1)
    assert dark[truth == 1].mean() < dark[truth == 4].mean() < dark[truth == 2].mean() < dark[truth == 3].mean()


@pytest.mark.parametrize("name", sorted(n for n, e in SAMPLES.items() if e.path))
def test_real_samples_open_where_they_are(name):
    entry = SAMPLES[name]
    folder = env.data_folder()
    if folder is None or not (folder / entry.path).is_file():
        pytest.skip(f"{entry.path} is not in the data folder")
    scan = sample(name)
    assert scan.meta["sample"]["origin"] == "data folder"
    assert scan.name == ("CMU-1-Small-Region" if name == "skin-slide" else name)
    start = tuple(n // 3 for n in scan.shape)
    assert np.asarray(scan.read(start, (63, 61))).std() > 0


def test_skin_slide_is_the_one_that_the_annotations_lie_on():
    try:
        scan = sample("skin-slide")
    except NotFoundError as error:
        pytest.skip(str(error))
    parent = samples.TUTORIAL_SLIDE
    assert (scan.name, scan.shape, scan.unit) == (parent.name, parent.shape, parent.unit)
    assert scan.spacing == pytest.approx(parent.spacing)
