"""DICOM pictures: clinical values, spacing, and nothing that tells who the patient is."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

import dhlab.io as dio
from dhlab import env
from dhlab.datasets import Dataset
from dhlab.errors import BadFileError, BadValueError

SECRETS = ("Secret^Name", "ID-4711", "19700101", "Hospital of Somewhere", "1.2.826.0.1.99")


def write(path, pixels: np.ndarray, **elements):
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    data.PatientName, data.PatientID, data.PatientBirthDate, data.InstitutionName, data.StudyInstanceUID = SECRETS
    data.Modality = "CT"
    data.Rows, data.Columns = pixels.shape[:2]
    data.SamplesPerPixel = pixels.shape[2] if pixels.ndim == 3 else 1
    data.PhotometricInterpretation = "RGB" if pixels.ndim == 3 else "MONOCHROME2"
    if pixels.ndim == 3:
        data.PlanarConfiguration = 0
    data.BitsAllocated = data.BitsStored = pixels.dtype.itemsize * 8
    data.HighBit = data.BitsStored - 1
    data.PixelRepresentation = int(np.issubdtype(pixels.dtype, np.signedinteger))
    data.PixelData = pixels.tobytes()
    for name, value in elements.items():
        setattr(data, name, value)
    data.save_as(path, enforce_file_format=True)
    return path


def stored(shape=(7, 12), dtype=np.uint16) -> np.ndarray:
    return (np.arange(np.prod(shape)).reshape(shape) * 3).astype(dtype)


def test_values_are_what_they_stand_for(tmp_path):
    pixels = stored()
    path = write(
        tmp_path / "a.dcm", pixels, BitsStored=12, HighBit=11, RescaleSlope=1, RescaleIntercept=-1024,
        PixelSpacing=[0.7, 0.5], ImageOrientationPatient=[1, 0, 0, 0, 1, 0], ImagePositionPatient=[-100, -80, 40],
    )  # fmt: skip
    scan = dio.open(path)
    assert scan.axes == "yx"
    assert scan.dtype == np.int16
    assert np.array_equal(scan.levels[0][...], pixels.astype(int) - 1024)
    assert scan.spacing == (0.7, 0.5)
    assert scan.unit == "mm"
    assert scan.origin == pytest.approx((-80.35, -100.25))
    assert scan.meta["modality"] == "CT"
    copy = pickle.loads(pickle.dumps(scan))
    assert np.array_equal(copy.read((2, 3), (4, 5)), pixels[2:6, 3:8].astype(int) - 1024)


@pytest.mark.parametrize(
    ("dtype", "slope", "intercept", "wanted"),
    [
        (np.uint8, 1, 0, "uint8"),
        (np.uint16, 1, 0, "uint16"),
        (np.int16, 1, 0, "int16"),
        (np.int16, 2, 0, "int32"),
        (np.uint16, 0.25, 1, "float32"),
    ],
)
def test_types(tmp_path, dtype, slope, intercept, wanted):
    pixels = stored(dtype=dtype)
    scan = dio.open(write(tmp_path / "a.dcm", pixels, RescaleSlope=slope, RescaleIntercept=intercept))
    assert scan.dtype == wanted
    assert np.allclose(scan.levels[0][...], pixels * slope + intercept)
    assert scan.unit == "px"


def test_colour_and_inverted_grey(tmp_path):
    colour = stored((5, 6, 3), np.uint8)
    scan = dio.open(write(tmp_path / "a.dcm", colour))
    assert scan.axes == "yxc"
    assert np.array_equal(scan.levels[0][...], colour)
    grey = stored((5, 6), np.uint8)
    inverted = dio.open(
        write(tmp_path / "b.dcm", grey, PhotometricInterpretation="MONOCHROME1", ImagerPixelSpacing=[1, 2])
    )
    assert np.array_equal(inverted.levels[0][...], 255 - grey)
    assert inverted.meta["inverted"]
    assert inverted.meta["spacing_source"] == "spacing at the detector"
    assert dio.open(tmp_path / "b.dcm", spacing=0.3).spacing == (0.3, 0.3)
    with pytest.raises(BadValueError, match="spacing"):
        dio.open(tmp_path / "b.dcm", spacing=-1)


def test_nobody_is_named(tmp_path):
    scan = dio.open(write(tmp_path / "a.dcm", stored()))
    told = json.dumps(dict(scan.meta)) + repr(scan) + scan._repr_html_()
    assert not [secret for secret in SECRETS if secret in told]


def test_what_cannot_be_read_is_told(tmp_path):
    (tmp_path / "a.dcm").write_text("hello")
    with pytest.raises(BadFileError, match="no DICOM file"):
        dio.open(tmp_path / "a.dcm")
    with pytest.raises(BadFileError, match="2 frames.*dcm2niix"):
        dio.open(write(tmp_path / "b.dcm", stored(), NumberOfFrames=2))
    path = write(tmp_path / "c.dcm", stored((40, 50)))
    path.write_bytes(path.read_bytes()[:-777])
    with pytest.raises(BadFileError, match=r"c\.dcm cannot be decoded"):
        dio.open(path).read((0, 0), (5, 5))
    with pytest.raises(BadFileError, match="PALETTE"):
        dio.open(write(tmp_path / "d.dcm", stored(), PhotometricInterpretation="PALETTE COLOR"))


def real(name: str):
    folder = env.data_folder()
    paths = sorted((folder / name).glob("*.dcm")) if folder is not None else []
    if not paths:
        pytest.skip(f"{name} is not in the data folder")
    return paths


@pytest.mark.parametrize("name", ["ct-head-dicom", "mri-prostate-adc-dicom"])
def test_real_slices(name):
    for path in real(name)[:2]:
        scan, data = dio.open(path), pydicom.dcmread(path)
        assert np.array_equal(
            scan.levels[0][...],
            data.pixel_array * float(data.get("RescaleSlope", 1)) + float(data.get("RescaleIntercept", 0)),
        )
        assert scan.spacing == pytest.approx([float(v) for v in data.PixelSpacing])
        told = json.dumps({k: v for k, v in scan.meta.items() if k != "path"})
        for keyword in ("PatientName", "PatientID", "StudyInstanceUID", "StudyDate"):
            value = str(data.get(keyword, ""))
            assert not value or value not in told


def test_slides_still_go_to_openslide():
    folder = env.data_folder()
    paths = sorted((folder / "wsi-cmu1-small-region").glob("*/*.dcm")) if folder is not None else []
    if not paths:
        pytest.skip("wsi-cmu1-small-region is not in the data folder")
    assert dio.open(paths[0]).meta["reader"] == "openslide"


def test_slices_of_a_yaml_are_stacked(tmp_path):
    paths = real("ct-head-dicom")
    for path in paths:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    names = [path.name for path in paths[:3]]
    (tmp_path / "set.yml").write_text(f"classes: [head]\nimages:\n- {{location: {names}, label: head}}\n")
    data = Dataset.from_yaml(tmp_path / "set.yml", check=True)
    assert data.axes == "zyx"
    assert np.array_equal(data[0][0][1], dio.open(paths[1]).levels[0][...])
    assert Dataset.from_yaml(tmp_path / "set.yml", size=64)[0][0].shape == (3, 64, 64)
