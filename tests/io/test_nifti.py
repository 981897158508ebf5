"""NIfTI: turned as nibabel turns it, spacing and scaling respected, faults told."""

from __future__ import annotations

import gzip
import json
import pickle

import nibabel
import numpy as np
import pytest

import dhlab.io as dio
from dhlab import env
from dhlab.errors import BadFileError, BadValueError

CODES = ["RAS", "LPS", "LAS", "PIR", "SAL", "ASL"]


def write(path, shape=(5, 7, 11), *, codes="RAS", dtype=np.int16, zooms=(0.5, 2.0, 3.0), slope=None, unit="mm"):
    """A volume whose values number its voxels, stored with its axes turned to `codes`."""
    values = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    turn = nibabel.orientations.ornt_transform(
        nibabel.orientations.axcodes2ornt("RAS"), nibabel.orientations.axcodes2ornt(tuple(codes))
    )
    affine = np.diag([*zooms, 1.0])
    affine[:3, 3] = (-10, 20, 30)
    stored = nibabel.orientations.apply_orientation(values, turn)
    image = nibabel.Nifti1Image(stored, affine @ nibabel.orientations.inv_ornt_aff(turn, shape[:3]))
    image.header.set_xyzt_units(unit, "sec")
    image.header["descrip"] = b"Secret^Name 1970-01-01"
    if slope is not None:
        image.header.set_slope_inter(*slope)
    nibabel.save(image, path)
    return values


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("codes", CODES)
def test_any_storage_gives_the_same_scan(tmp_path, codes, suffix):
    values = write(tmp_path / f"a{suffix}", codes=codes)
    scan = dio.open(tmp_path / f"a{suffix}")
    # From right, anterior, superior to the scan's z, y, x, of which y and x run the other way.
    wanted = values.T[:, ::-1, ::-1]
    assert scan.axes == "zyx"
    assert scan.dtype == np.int16
    assert np.array_equal(scan.levels[0][...], wanted)
    assert np.array_equal(scan.read((3, 2, 1), (4, 3, 2)), wanted[3:7, 2:5, 1:3])
    assert scan.spacing == pytest.approx((3.0, 2.0, 0.5))
    assert scan.unit == "mm"
    # Left and posterior positions of the outer corner: minus the largest right and anterior ones.
    assert scan.origin == pytest.approx((30 - 1.5, -(20 + 6 * 2.0) - 1.0, -(-10 + 4 * 0.5) - 0.25))
    assert scan.name == "a"
    copy = pickle.loads(pickle.dumps(scan))
    assert np.array_equal(copy.levels[0][2], wanted[2])


def test_the_affine_leads_back_to_the_header(tmp_path):
    write(tmp_path / "a.nii", codes="PIR")
    scan, image = dio.open(tmp_path / "a.nii"), nibabel.load(tmp_path / "a.nii")
    stored = np.asarray(image.dataobj)
    z, y, x = 4, 2, 3
    place = np.linalg.inv(image.affine) @ np.array(scan.meta["affine"]) @ (x, y, z, 1)
    assert scan.levels[0][z, y, x] == stored[tuple(np.rint(place[:3]).astype(int))]


def test_types_scaling_units_and_time(tmp_path):
    write(tmp_path / "a.nii", dtype=np.float64)
    assert dio.open(tmp_path / "a.nii").dtype == np.float32
    values = write(tmp_path / "b.nii", slope=(0.5, -3.0))
    scaled = dio.open(tmp_path / "b.nii")
    assert scaled.dtype == np.float32
    assert np.allclose(np.asarray(scaled.levels[0][...]), nibabel.load(tmp_path / "b.nii").get_fdata().T[:, ::-1, ::-1])
    assert values.shape == (5, 7, 11)
    write(tmp_path / "c.nii", unit="meter", zooms=(0.001, 0.001, 0.002))
    assert dio.open(tmp_path / "c.nii").spacing == pytest.approx((2, 1, 1))
    series = write(tmp_path / "d.nii.gz", (4, 3, 2, 6), zooms=(1.0, 1.0, 1.0))
    scan = dio.open(tmp_path / "d.nii.gz")
    assert scan.axes == "czyx"
    assert np.array_equal(scan.levels[0][5], series[..., 5].T[:, ::-1, ::-1])
    assert dio.open(tmp_path / "c.nii", spacing=0.7).spacing == (0.7, 0.7, 0.7)
    assert dio.open(tmp_path / "c.nii", spacing=(3, 2, 1)).meta["spacing_source"] == "override"
    with pytest.raises(BadValueError, match="spacing"):
        dio.open(tmp_path / "c.nii", spacing=(1, 2))


def test_texts_of_the_header_are_not_copied(tmp_path):
    write(tmp_path / "a.nii")
    scan = dio.open(tmp_path / "a.nii")
    assert "Secret" not in json.dumps(dict(scan.meta))


def test_damage_is_told(tmp_path):
    (tmp_path / "a.nii").write_text("hello")
    with pytest.raises(BadFileError, match="no NIfTI"):
        dio.open(tmp_path / "a.nii")
    (tmp_path / "b.nii.gz").write_text("hello")
    with pytest.raises(BadFileError, match="no NIfTI"):
        dio.open(tmp_path / "b.nii.gz")
    rng = np.random.default_rng(0)
    image = nibabel.Nifti1Image(rng.integers(0, 999, (30, 31, 32)).astype(np.int16), np.eye(4))
    nibabel.save(image, tmp_path / "c.nii.gz")
    data = (tmp_path / "c.nii.gz").read_bytes()
    (tmp_path / "c.nii.gz").write_bytes(data[: len(data) // 2])
    cut = dio.open(tmp_path / "c.nii.gz")
    with pytest.raises(BadFileError, match=r"c\.nii\.gz is damaged"):
        cut.read((0, 0, 0), (30, 30, 30))
    (tmp_path / "d.nii").write_bytes(gzip.decompress(data)[:-999])
    with pytest.raises(BadFileError, match=r"d\.nii is damaged"):
        dio.open(tmp_path / "d.nii").read((0, 0, 0), (30, 30, 30))
    colour = np.zeros((3, 4, 5), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nibabel.save(nibabel.Nifti1Image(colour, np.eye(4)), tmp_path / "e.nii")
    with pytest.raises(BadFileError, match="real numbers"):
        dio.open(tmp_path / "e.nii")
    nibabel.save(nibabel.Nifti1Image(np.zeros((3, 4), np.uint8), np.eye(4)), tmp_path / "f.nii")
    with pytest.raises(BadFileError, match="expected three axes"):
        dio.open(tmp_path / "f.nii")


@pytest.mark.parametrize("name", ["mri-hippocampus-msd/images", "mri-spinal-cord-sct/t2", "mri-spinal-cord-sct/fmri"])
def test_real_volumes(name):
    folder = env.data_folder()
    paths = sorted((folder / name).glob("*.nii.gz")) if folder is not None else []
    if not paths:
        pytest.skip(f"{name} is not in the data folder")
    for path in paths[:2]:
        scan, image = dio.open(path), nibabel.as_closest_canonical(nibabel.load(path))
        assert np.allclose(np.asarray(scan.levels[0][...]), image.get_fdata().T[..., ::-1, ::-1])
        assert scan.spacing == pytest.approx(image.header.get_zooms()[2::-1], rel=1e-4)
