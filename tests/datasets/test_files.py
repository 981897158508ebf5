"""File samples: the pixels that the readers give, for any number of threads, and faults that name file and sample."""

from __future__ import annotations

import io
import pickle

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import Image

import dhlab
from dhlab.datasets import Dataset
from dhlab.datasets.files import FileSamples, PictureFiles, list_files
from dhlab.datasets.pictures import decode, read_layout, resize
from dhlab.errors import BadFileError, BadShapeError, BadValueError, NotFoundError, UnknownNameError

SHAPES = [(1, 1), (63, 1), (1, 63), (61, 127), (128, 257)]


def picture(shape: tuple[int, ...], seed: int = 0, dtype: str = "uint8") -> np.ndarray:
    """A smooth picture with some noise: JPEG keeps it nearly."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[0], : shape[1]]
    planes = [127 + 90 * np.sin(x / 19 + c + seed) * np.cos(y / 23 - c) for c in range(shape[2] if shape[2:] else 1)]
    image = np.stack(planes, -1) + rng.normal(0, 2, (*shape[:2], len(planes)))
    image = image.clip(0, 255) if dtype == "uint8" else image * 250
    return image.astype(dtype).reshape(shape)


def write(path, image: np.ndarray, **options) -> str:
    Image.fromarray(image).save(path, **options)
    return str(path)


def pictures(*paths, **options) -> PictureFiles:
    return PictureFiles(tuple((str(p),) for p in paths), **options).check()


def read(files: PictureFiles) -> np.ndarray:
    return files.read(np.arange(len(files)))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("channels", [(), (3,), (4,)])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".webp", ".tif"])
def test_pixels_are_those_of_the_reader(tmp_path, shape, channels, suffix):
    if suffix == ".jpg" and channels == (4,):
        pytest.skip("JPEG has no alpha")
    path = tmp_path / f"a{suffix}"
    image = picture((*shape, *channels))
    if suffix == ".tif":
        import tifffile

        tifffile.imwrite(path, image, photometric="rgb" if channels else "minisblack")
    else:
        write(path, image)
    scan = dhlab.open(path)
    wanted = np.asarray(scan.levels[0][...])
    pixels, axes = decode(str(path))
    assert axes == scan.axes
    assert pixels.dtype == wanted.dtype
    assert np.abs(pixels.astype(int) - wanted).max() <= (1 if suffix == ".jpg" else 0)
    assert read_layout(str(path)).shape == wanted.shape
    files = pictures(path, path)
    assert np.array_equal(read(files), np.stack([pixels, pixels]))


def test_deep_grey_stays_deep(tmp_path):
    image = picture((31, 47), dtype="uint16")
    files = pictures(write(tmp_path / "a.png", image))
    assert files.layout.axes == "yx"
    assert read(files).dtype == np.uint16
    assert np.array_equal(read(files)[0], image)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_cameras_that_were_turned(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    paths = [write(tmp_path / f"a{s}", picture((48, 80, 3)), exif=exif) for s in (".jpg", ".png")]
    for path in paths:
        wanted = np.asarray(dhlab.open(path).levels[0][...])
        assert read_layout(path).shape == wanted.shape
        assert np.abs(decode(path)[0].astype(int) - wanted).max() <= 1
        small, _ = decode(path, least=(wanted.shape[0] // 4, wanted.shape[1] // 4))
        turned = resize(wanted, "yxc", small.shape[:2])
        assert np.abs(small.astype(int) - turned).mean() < 3


@pytest.mark.parametrize(
    "kind", ["palette", "clear palette", "clear colour", "1 bit", "cmyk", "grey with alpha", "interlaced"]
)
def test_odd_kinds_are_as_the_reader_gives_them(tmp_path, kind):
    image = Image.fromarray(picture((37, 53, 3)))
    path = tmp_path / ("a.jpg" if kind == "cmyk" else "a.png")
    if kind == "palette":
        image.quantize(7).save(path)
    elif kind == "clear palette":
        image.quantize(7).save(path, transparency=2)
    elif kind == "clear colour":
        image.save(path, transparency=image.getpixel((3, 3)))
    elif kind == "1 bit":
        image.convert("1").save(path)
    elif kind == "cmyk":
        image.convert("CMYK").save(path)
    elif kind == "grey with alpha":
        image.convert("LA").save(path)
    else:
        cv2.imwrite(str(path), np.asarray(image)[..., ::-1])
        data = io.BytesIO()
        image.save(data, "PNG", interlace=1)
        path.write_bytes(data.getvalue())
    wanted = np.asarray(dhlab.open(path).levels[0][...])
    assert np.array_equal(decode(str(path))[0], wanted)
    assert read_layout(str(path)).shape == wanted.shape


def test_small_jpeg_is_near_the_mean_of_its_pixels(tmp_path):
    image = picture((512, 768, 3))
    path = write(tmp_path / "a.jpg", image, quality=95)
    got = read(pictures(path, size=(64, 96)))[0]
    wanted = image.reshape(64, 8, 96, 8, 3).mean((1, 3))
    assert np.abs(got - wanted).mean() < 2
    # Never decoded below the size wanted.
    assert decode(path, least=(65, 96))[0].shape == (128, 192, 3)
    assert decode(path, least=(64, 96))[0].shape == (64, 96, 3)


@pytest.mark.parametrize("size", [(1, 1), (63, 17), (97, 131)])
def test_resizing_keeps_type_and_shows_the_same(tmp_path, size):
    image = picture((61, 43, 3))
    path = write(tmp_path / "a.png", image)
    got = read(pictures(path, size=size))
    assert got.shape == (1, *size, 3)
    assert abs(got.mean() - image.mean()) < 12
    mask = (np.arange(61 * 43).reshape(61, 43) % 5).astype(np.uint16)
    assert set(np.unique(resize(mask, "yx", size, nearest=True))) <= set(range(5))


def test_nearest_takes_the_pixel_under_the_centre():
    mask = np.arange(12, dtype=np.uint8)[None].repeat(12, 0)
    assert resize(mask, "yx", (12, 4), nearest=True)[0].tolist() == [1, 4, 7, 10]


def test_grey_and_colour_mix_only_on_request(tmp_path):
    grey, colour, clear = (picture((20, 30, *c)) for c in ((), (3,), (4,)))
    paths = [write(tmp_path / f"{n}.png", a) for n, a in (("grey", grey), ("colour", colour), ("clear", clear))]
    with pytest.raises(BadShapeError, match=r"colour\.png.*grey\.png.*channels=1 or channels=3"):
        pictures(*paths)
    three = read(pictures(*paths, channels=3))
    assert three.shape == (3, 20, 30, 3)
    assert np.array_equal(three[0], np.repeat(grey[..., None], 3, -1))
    assert np.array_equal(three[2], clear[..., :3])
    one = pictures(*paths, channels=1)
    assert one.layout.axes == "yx"
    assert np.abs(read(one)[1].astype(int) - np.asarray(Image.fromarray(colour).convert("L"))).max() <= 1
    with pytest.raises(BadValueError, match="channels 2"):
        pictures(*paths, channels=2)


def test_grey_of_a_jpeg_is_its_luma(tmp_path):
    path = write(tmp_path / "a.jpg", picture((40, 56, 3)))
    wanted = np.asarray(Image.open(path).convert("L"))
    assert np.abs(read(pictures(path, channels=1))[0].astype(int) - wanted).max() <= 2
    grey = write(tmp_path / "b.jpg", picture((40, 56)))
    three = read(pictures(grey, channels=3))[0]
    assert np.array_equal(three[..., 0], three[..., 2])


def test_sizes_mix_only_on_request(tmp_path):
    paths = [write(tmp_path / f"{n}.png", picture((20 + n, 30, 3))) for n in range(3)]
    with pytest.raises(BadShapeError, match=r"1\.png\) is 21 × 30 px.*0\.png\) 20 × 30 px.*size="):
        pictures(*paths)
    assert read(pictures(*paths, size=(8, 9))).shape == (3, 8, 9, 3)
    deep = write(tmp_path / "deep.png", picture((20, 30), dtype="uint16"))
    with pytest.raises(BadShapeError, match="uint16"):
        pictures(paths[0], deep, channels=1)


def test_files_are_stacked_as_a_volume_or_as_channels(tmp_path):
    planes = [picture((20, 30), seed) for seed in range(3)]
    paths = tuple(write(tmp_path / f"{i}.png", p) for i, p in enumerate(planes))
    volume = PictureFiles((paths, paths[::-1])).check()
    assert volume.layout.axes == "zyx"
    assert np.array_equal(read(volume), np.stack([planes, planes[::-1]]))
    channels = PictureFiles((paths,), stack="c", size=(10, 15)).check()
    assert channels.layout.axes == "cyx"
    assert np.array_equal(read(channels)[0, 1], resize(planes[1], "yx", (10, 15)))
    colours = tuple(write(tmp_path / f"c{i}.png", picture((20, 30, 3), i)) for i in range(2))
    assert PictureFiles((colours,)).check().layout.axes == "zyxc"
    with pytest.raises(BadShapeError, match="axis 'c' already"):
        PictureFiles((colours,), stack="c").check()
    with pytest.raises(BadShapeError, match="sample 1 "):
        PictureFiles((paths, paths[:2])).check()
    with pytest.raises(BadShapeError, match="sample 1 "):
        PictureFiles((paths, paths[:1])).read(np.array([0, 1]))
    with pytest.raises(BadShapeError, match="one sample must be alike"):
        PictureFiles(((paths[0], colours[0]),)).check()


@pytest.mark.parametrize("threads", ["1", "2", "7"])
def test_threads_change_nothing(tmp_path, monkeypatch, threads):
    paths = [write(tmp_path / f"{n}.{'jpg' if n % 2 else 'png'}", picture((41, 33, 3), n)) for n in range(23)]
    order = np.random.default_rng(1).permutation(23)
    files = pictures(*paths, size=(24, 24))
    monkeypatch.setenv("DHLAB_THREADS", threads)
    got = files.read(order)
    for image, index in zip(got, order, strict=True):
        assert np.array_equal(image, files.read(np.array([index]))[0])


@pytest.mark.parametrize("threads", ["1", "3"])
def test_the_first_fault_is_told_whatever_finishes_first(tmp_path, monkeypatch, threads):
    monkeypatch.setenv("DHLAB_THREADS", threads)
    paths = [write(tmp_path / f"{n:02}.jpg", picture((64, 64, 3), n)) for n in range(20)]
    files = pictures(*paths)
    for n, keep in ((13, 300), (7, 700)):
        data = (tmp_path / f"{n:02}.jpg").read_bytes()
        (tmp_path / f"{n:02}.jpg").write_bytes(data[:keep])
    (tmp_path / "17.jpg").unlink()
    with pytest.raises(BadFileError, match=r"sample 7: .*07\.jpg is damaged or truncated"):
        files.read(np.arange(20))
    with pytest.raises(NotFoundError, match=r"sample 17: nothing at .*17\.jpg"):
        files.read(np.arange(19, 13, -1))


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_damage_in_the_pixels_is_never_read_as_pixels(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    write(path, picture((128, 128, 3)))
    data = path.read_bytes()
    files = pictures(path)
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(BadFileError, match="sample 0"):
        read(files)
    path.write_bytes(b"no picture at all")
    with pytest.raises(BadFileError, match="not a picture"):
        pictures(path)
    path.write_bytes(b"")
    with pytest.raises(BadFileError, match="empty"):
        pictures(path)
    with pytest.raises(UnknownNameError, match="no reader"):
        pictures(write(tmp_path / "a.xyz", picture((9, 9)), format="PNG"))


def test_a_name_may_lie_about_its_format(tmp_path):
    image = picture((30, 40, 3))
    (tmp_path / "a.png").write_bytes(simplejpeg.encode_jpeg(image))
    assert np.abs(decode(str(tmp_path / "a.png"))[0].astype(int) - image).mean() < 4
    assert read_layout(str(tmp_path / "a.png")).shape == image.shape


def test_files_of_tiled_formats_are_read_inside_the_pool(tmp_path, monkeypatch):
    import tifffile

    monkeypatch.setenv("DHLAB_THREADS", "2")
    images = [picture((300, 300, 3), n) for n in range(9)]
    paths = [tmp_path / f"{n}.tif" for n in range(9)]
    for path, image in zip(paths, images, strict=True):
        tifffile.imwrite(path, image, tile=(32, 32), photometric="rgb", compression="zlib")
    assert np.array_equal(read(pictures(*paths)), np.stack(images))


def test_travels_to_another_process(tmp_path):
    paths = [write(tmp_path / f"{n}.png", picture((20, 30, 3), n)) for n in range(3)]
    samples = FileSamples(pictures(*paths), np.arange(3))
    copy = pickle.loads(pickle.dumps(samples))
    assert np.array_equal(copy.read(np.array([2, 0]))[0], samples.read(np.array([2, 0]))[0])


def test_files_are_found_by_folder_pattern_or_name(tmp_path):
    (tmp_path / "below").mkdir()
    for name in ("b.png", "a.jpg", "below/c.png", ".hidden.png", "notes.md"):
        (tmp_path / name).write_bytes(b"x")
    names = ["a.jpg", "b.png", "below/c.png"]
    assert list_files(tmp_path) == [str(tmp_path / n) for n in names]
    assert list_files(f"{tmp_path}/*.png") == [str(tmp_path / "b.png")]
    assert list_files(f"{tmp_path}/**/*.png") == [str(tmp_path / n) for n in names[1:]]
    assert list_files([tmp_path / "b.png"]) == [str(tmp_path / "b.png")]
    with pytest.raises(NotFoundError, match="no pictures"):
        list_files(f"{tmp_path}/*.tif")
    with pytest.raises(NotFoundError, match="no folder"):
        list_files(tmp_path / "nowhere")


def test_a_dataset_of_files_joins_and_picks(tmp_path):
    for label in "ab":
        (tmp_path / label).mkdir()
        for n in range(4):
            write(tmp_path / label / f"{n}.png", picture((12, 13, 3), n + ord(label)))
    data = Dataset.from_folder(tmp_path)
    whole = Dataset.concat([data.subset([5, 0]), data.subset([7])])
    images, targets = whole.batch([2, 0])
    assert targets.tolist() == [1, 1]
    assert np.array_equal(images[0], data[7][0])
