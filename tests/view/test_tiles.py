"""Tiles are what the scan holds, at every level, for every kind, and damage stays inside one tile."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

import dhlab as dh
from dhlab import phantoms
from dhlab.cache import ByteCache
from dhlab.display import class_color, heat_colors
from dhlab.errors import BadFileError, BadShapeError, BadValueError, UnknownNameError
from dhlab.scan import Scan
from dhlab.view.tiles import Style, TileSource, read_plane, to_rgba

RNG = np.random.default_rng(7)


def smooth(height: int, width: int) -> np.ndarray:
    """Return an RGB picture that survives JPEG and averaging: each pixel tells its place."""
    y, x = np.mgrid[:height, :width]
    return np.stack([255 * y / height, 255 * x / width, 120 + 60 * np.sin(x / 90)], -1).astype(np.uint8)


def decode(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def stitch(source: TileSource, level: int, **style: object) -> np.ndarray:
    rows, columns = source.grid_shape(level)
    picture = [[decode(source.encode(level, r, c, **style)[0]) for c in range(columns)] for r in range(rows)]
    side = source.tile
    whole = [[np.broadcast_to(t, (side, side, t.shape[-1])) if t.shape[0] == 1 else t for t in row] for row in picture]
    full = np.concatenate([np.concatenate(row, 1) for row in whole], 0)
    height, width = (max(1, n >> level) for n in source.shape)
    return full[:height, :width]


class Uncertain:
    """A level like a reader's whose pixels cannot all be decoded, and that counts its reads."""

    def __init__(self, array: np.ndarray, bad_below: int = 10**9) -> None:
        self.array, self.bad_below, self.pixels = array, bad_below, 0

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def dtype(self) -> np.dtype:
        return self.array.dtype

    def __getitem__(self, key):
        if key[0].stop > self.bad_below:
            raise BadFileError("tile 17 of bad.svs is damaged; expected JPEG. Copy the file again.")
        found = self.array[key]
        self.pixels += found.shape[0] * found.shape[1]
        return found


@pytest.mark.parametrize(("height", "width"), [(1, 1), (63, 1), (1, 701), (511, 513), (1031, 757)])
def test_every_level_shows_the_scan(height: int, width: int) -> None:
    array = smooth(height, width)
    source = TileSource(Scan.from_array(array, "yxc", spacing=0.5, unit="µm", fill=255, pyramid=False), tile=128)
    assert max(source.shape) <= source.tile << (source.level_count - 1)
    for level in range(source.level_count):
        picture, step = stitch(source, level).astype(float), 2**level
        # A pixel of a level stands for the middle of the pixels below it.
        y, x = (
            np.minimum((np.arange(n) + 0.5) * step - 0.5, m - 1)
            for n, m in zip(picture.shape[:2], (height, width), strict=True)
        )
        assert np.abs(picture[..., 0] - 255 * y[:, None] / height).mean() < 3 + 64 * step / max(height, 2 * step)
        assert np.abs(picture[..., 1] - 255 * x[None, :] / width).mean() < 3 + 64 * step / max(width, 2 * step)


def test_levels_of_the_file_are_used_where_they_fit_and_none_is_read_whole() -> None:
    array = smooth(2048, 2048)
    levels = (Uncertain(array), Uncertain(array[::4, ::4]))
    source = TileSource(Scan(levels, "yxc", (1.0, 1.0), scales=((1, 1), (4, 4)), fill=255), tile=256)
    source.encode(0, 3, 3)
    assert (levels[0].pixels, levels[1].pixels) == (256 * 256, 0)
    source.encode(2, 1, 1)
    assert (levels[0].pixels, levels[1].pixels) == (256 * 256, 256 * 256)
    source.encode(1, 0, 0)
    assert levels[0].pixels == 256 * 256 + 512 * 512
    source.encode(3, 0, 0)
    assert levels[1].pixels == 256 * 256 + 512 * 512


def test_a_scan_without_pyramid_is_read_once_for_all_coarse_tiles() -> None:
    array = smooth(4096, 4096)
    level = Uncertain(array)
    source = TileSource(Scan((level,), "yxc", (1.0, 1.0), fill=255), tile=128)
    picture = decode(source.encode(5, 0, 0)[0]).astype(float)
    assert np.abs(picture - array[16::32, 16::32]).mean() < 4
    assert level.pixels == array.shape[0] * array.shape[1]
    source.encode(4, 1, 1)
    source.encode(5, 0, 0, threshold=0.5)
    assert level.pixels == array.shape[0] * array.shape[1]


@pytest.mark.parametrize("tile", [128, 240])
@pytest.mark.parametrize("shape", [(1061, 1303), (129, 700), (1500, 257)])
def test_tiles_that_the_file_stores_pass_undecoded_on_its_own_grid(tmp_path, shape, tile) -> None:
    image = np.asarray(phantoms.paint_slide(shape, rng=3)[0])
    path = phantoms.write_slide(tmp_path / "a.svs", image, tile=tile, levels=(1, 4))
    scan, data = dh.open(path), path.read_bytes()
    source = TileSource(scan, tile=64)
    native = {round(scan.scales[i][0]): i for i in scan.meta["levels_native"]}
    for level, tiles in enumerate(source.info()["tiles"]):
        stored = native.get(2**level)
        assert tiles == ([tile, tile] if stored is not None else [64, 64])
        rows, columns = source.grid_shape(level)
        assert (rows * tiles[0] << level) >= shape[0] > ((rows - 1) * tiles[0] << level)
        for row in range(rows):
            for column in range(columns):
                encoded = source.encode(level, row, column)[0]
                picture = decode(encoded)
                assert picture.shape == (*tiles, 3)
                if stored is None:
                    continue
                assert encoded[-500:] in data
                pixels = scan.levels[stored][row * tile : (row + 1) * tile, column * tile : (column + 1) * tile]
                assert np.array_equal(picture[: pixels.shape[0], : pixels.shape[1]], pixels)


def test_resampled_levels_lie_where_the_stored_ones_do(tmp_path) -> None:
    image = smooth(1000, 1500)
    path = phantoms.write_slide(tmp_path / "a.svs", image, tile=128, levels=(1, 4), subsampling=(1, 1), quality=95)
    source = TileSource(dh.open(path), tile=96)
    for level in range(source.level_count):
        picture = stitch(source, level).astype(float)[: 1000 >> level, : 1500 >> level]
        y, x = ((np.arange(n) + 0.5) * 2**level - 0.5 for n in picture.shape[:2])
        assert np.abs(picture[..., 0] - 255 * y[:, None] / 1000).mean() < 1.5
        assert np.abs(picture[..., 1] - 255 * x[None, :] / 1500).mean() < 1.5


def test_a_style_or_a_grid_that_does_not_fit_is_drawn_anew(tmp_path) -> None:
    image = np.asarray(phantoms.paint_slide((600, 700), rng=3)[0])
    path = phantoms.write_slide(tmp_path / "a.svs", image, tile=128, levels=(1,))
    scan, data = dh.open(path), path.read_bytes()
    source = TileSource(scan)
    plain = source.encode(0, 1, 1)
    assert plain[0][-500:] in data
    # What the page sends along as the range it was told is no change.
    assert source.encode(0, 1, 1, low=0.0, high=255.0, colors="viridis", threshold=0.2) is plain
    for style in ({"channel": 0}, {"low": 20.0}, {"high": 200.0}):
        changed = source.encode(0, 1, 1, **style)[0]
        assert changed[-500:] not in data
        assert decode(changed).shape == (128, 128, 3)
    stretched = TileSource(scan.replace(spacing=(0.5, 0.25)))
    assert stretched.info()["tiles"][0] == [512, 512]
    assert TileSource(scan.replace(kind="labels")).info()["tiles"][0] == [512, 512]
    tiny = phantoms.write_slide(tmp_path / "tiny.svs", image, tile=64, levels=(1,))
    assert TileSource(dh.open(tiny)).info()["tiles"][0] == [512, 512]


def test_strips_and_stacks_of_jpeg(tmp_path) -> None:
    tifffile = pytest.importorskip("tifffile")
    stack = np.stack([np.asarray(phantoms.paint_slide((300, 400), rng=i)[0]) for i in range(3)])
    options = {"photometric": "rgb", "compression": "jpeg", "metadata": {"axes": "ZYXS"}, "ome": True}
    tifffile.imwrite(tmp_path / "z.ome.tif", stack, tile=(128, 128), **options)
    scan = dh.open(tmp_path / "z.ome.tif")
    source = TileSource(scan)
    assert source.info()["tiles"][0] == [128, 128]
    for z in range(3):
        picture = decode(source.encode(0, 1, 2, index={"z": z})[0])
        assert np.array_equal(picture, scan.read((z, 128, 256), (1, 128, 128))[0])
    tifffile.imwrite(tmp_path / "strips.tif", stack[0], photometric="rgb", compression="jpeg", rowsperstrip=16)
    assert TileSource(dh.open(tmp_path / "strips.tif")).info()["tiles"][0] == [512, 512]


def test_tiles_do_not_depend_on_what_was_asked_before() -> None:
    scan = Scan.from_array(smooth(1901, 1103), "yxc", pyramid=False, fill=255)
    places = [
        (level, row, column)
        for level in range(7)
        for row in range(TileSource(scan, tile=32).grid_shape(level)[0])
        for column in range(TileSource(scan, tile=32).grid_shape(level)[1])
    ][::3]
    up, down = TileSource(scan, tile=32), TileSource(scan, tile=32)
    rising = {place: up.encode(*place) for place in places}
    assert all(down.encode(*place) == rising[place] for place in reversed(places))


def test_anisotropic_pixels_become_square() -> None:
    array = smooth(60, 300)
    source = TileSource(Scan.from_array(array, "yxc", spacing=(5.0, 1.0), unit="mm"), tile=512)
    assert source.shape == (300, 300)
    assert source.info()["aspect"] == [5.0, 1.0]
    picture = decode(source.encode(0, 0, 0)[0])[:300, :300]
    rows = np.clip((np.arange(300) + 0.5) / 5 - 0.5, 0, 59)
    assert np.abs(picture[:, :, 0] - np.interp(rows, range(60), array[:, 0, 0])[:, None]).mean() < 3


def test_heat_map_colours_are_those_of_the_display_and_low_scores_are_clear() -> None:
    scores = np.linspace(0, 1, 64, dtype=np.float32).reshape(1, 8, 8)
    heat = Scan.from_array(scores, "cyx", kind="heatmap", channels=["tumour"])
    source = TileSource(heat, tile=8)
    picture = decode(source.encode(0, 0, 0, colors="inferno")[0])
    assert np.array_equal(picture[..., :3], heat_colors()[np.rint(scores[0] * 255).astype(int)])
    assert picture[0, 0, 3] == 0
    assert picture[7, 7, 3] == 255
    cut = decode(source.encode(0, 0, 0, threshold=0.5)[0])
    assert np.array_equal(cut[..., 3] > 0, scores[0] >= 0.5)
    with pytest.raises(UnknownNameError, match="turbo"):
        source.encode(0, 0, 0, colors="turbos")


def test_all_classes_show_the_winner_but_not_the_background_nor_what_was_never_predicted() -> None:
    scores = np.zeros((3, 2, 4), np.float32)
    scores[0, :, 0] = scores[1, :, 1] = scores[2, :, 2] = 1
    scores[:, :, 3] = np.nan
    heat = Scan.from_array(scores, "cyx", kind="heatmap", channels=["background", "epidermis", "dermis"])
    picture = decode(TileSource(heat, tile=4).encode(0, 0, 0)[0])
    assert picture[0, :, 3].tolist() == [0, 255, 255, 0]
    assert tuple(picture[0, 1, :3]) == class_color(1)
    assert tuple(picture[1, 2, :3]) == class_color(2)


def test_masks_and_labels_keep_their_classes_when_reduced() -> None:
    labels = RNG.integers(0, 5, (257, 131)).astype(np.uint16)
    scan = Scan.from_array(labels, "yx", kind="labels", pyramid=False)
    for level in range(TileSource(scan, tile=64).level_count):
        picture = stitch(TileSource(scan, tile=64), level)
        colors = {tuple(c) for c in picture[picture[..., 3] > 0][:, :3].tolist()}
        assert colors <= {class_color(i) for i in range(4)}
        assert set(np.unique(picture[..., 3])) <= {0, 255}
    fine = stitch(TileSource(scan, tile=64), 0)
    assert np.array_equal(fine[..., 3] > 0, labels > 0)


def test_a_volume_shows_the_slice_that_is_asked_for() -> None:
    volume = np.repeat(np.arange(0, 240, 24, dtype=np.uint8), 64 * 64).reshape(10, 64, 64)
    source = TileSource(Scan.from_array(volume, "zyx", spacing=(5, 1, 1), unit="mm"), tile=64)
    assert source.info()["axes"] == {"z": 10}
    for z in (0, 3, 9):
        assert abs(int(decode(source.encode(0, 0, 0, index={"z": z})[0])[30, 30, 0]) - 24 * z) <= 2
    assert abs(int(decode(source.encode(0, 0, 0)[0])[30, 30, 0]) - 120) <= 2
    with pytest.raises(BadValueError, match=r"index 10 .* expected 0 to 9"):
        source.encode(0, 0, 0, index={"z": 10})


def test_sixteen_bit_channels_stand_alone_or_add_up() -> None:
    planes = np.zeros((2, 40, 40), np.uint16)
    planes[0, :20] = planes[1, 20:] = 40_000
    scan = Scan.from_array(planes, "cyx", channels=["DAPI", "CD3"])
    one = decode(TileSource(scan, tile=64).encode(0, 0, 0, channel=1, low=0, high=40_000)[0])
    assert one[10, 10].max() < 12
    assert one[30, 30].min() > 243
    both = decode(TileSource(scan, tile=64).encode(0, 0, 0, low=0, high=40_000)[0]).astype(int)
    assert np.abs(both[10, 10] - class_color(0)).max() < 12
    assert np.abs(both[30, 30] - class_color(1)).max() < 12


@pytest.mark.parametrize(
    "dtype", ["uint8", "int8", "uint16", "int16", "uint32", "int64", "float16", "float32", "float64"]
)
def test_any_dtype_has_tiles(dtype: str) -> None:
    array = (np.arange(100 * 80).reshape(100, 80) % 100).astype(dtype)
    source = TileSource(Scan.from_array(array, "yx"), tile=32)
    for level in range(source.level_count):
        assert decode(source.encode(level, 0, 0)[0]).shape == (32, 32, 3)


def test_wrong_places_are_refused() -> None:
    source = TileSource(Scan.from_array(smooth(100, 100), "yxc"), tile=64)
    with pytest.raises(BadValueError, match="2 × 2 tiles"):
        source.encode(0, 2, 0)
    with pytest.raises(BadValueError, match="expected 0 to 1"):
        source.encode(2, 0, 0)
    with pytest.raises(BadValueError, match="channel 3"):
        source.encode(0, 0, 0, channel=3)
    with pytest.raises(BadShapeError, match="expected y and x"):
        TileSource(Scan.from_array(np.zeros((2, 10)), "ct"))
    with pytest.raises(BadValueError, match="threshold"):
        Style(threshold=2)


def test_damage_stays_in_its_tile() -> None:
    source = TileSource(Scan((Uncertain(smooth(512, 512), bad_below=256),), "yxc", (1.0, 1.0)), tile=256)
    with pytest.raises(BadFileError, match="tile 17"):
        source.encode(0, 1, 0)
    assert len(source.encode(0, 0, 0)[0]) > 100


def test_many_threads_get_what_one_gets() -> None:
    source = TileSource(Scan.from_array(smooth(1500, 1100), "yxc"), tile=128, cache=ByteCache(200_000))
    wanted = [(0, r, c) for r in range(12) for c in range(9)] * 3
    alone = TileSource(source.scan, tile=128)
    expected = {place: alone.encode(*place) for place in set(wanted)}
    with ThreadPoolExecutor(8) as pool:
        for place, got in zip(wanted, pool.map(lambda p: source.encode(*p), wanted), strict=True):
            assert got == expected[place]
    assert source._tiles.used <= 200_000


def test_sources_may_share_a_cache_and_let_go_of_their_scans() -> None:
    import gc
    import weakref

    cache = ByteCache(1 << 20)
    sources = [TileSource(Scan.from_array(smooth(64, 64) // n, "yxc"), tile=64, cache=cache) for n in (1, 2)]
    one, other = (source.encode(0, 0, 0) for source in sources)
    assert one != other
    assert [source.encode(0, 0, 0) for source in sources] == [one, other]
    assert cache.used == len(one[0]) + len(other[0])
    sources[0].clear()
    assert cache.used == len(other[0])
    assert sources[1].kept(sources[1].request((0, 0, 0))) is other
    gone = weakref.ref(sources.pop())
    gc.collect()
    assert gone() is None
    assert cache.used == len(other[0])


def test_read_plane_places_fractions_and_keeps_the_edge() -> None:
    ramp = np.tile(np.arange(64, dtype=np.float32), (64, 1))
    scan = Scan.from_array(ramp, "yx", fill=-1000)
    double = read_plane(scan, (0, 0), (64, 64), (128, 128))
    assert np.allclose(double[64, 2:-2], (np.arange(2, 126) + 0.5) / 2 - 0.5, atol=0.02)
    half = read_plane(scan, (0, 0.0), (63, 63), (16, 16))
    assert half.min() > 0
    assert abs(half[0, 0] - 1.5) < 0.6
    outside = read_plane(scan, (0, 60), (8, 40), (8, 40))
    assert (outside[:, 4:] == -1000).all()


@pytest.mark.parametrize("channels", [1, 4, 5, 9])
def test_any_number_of_classes_is_reduced(channels: int) -> None:
    scores = np.random.default_rng(0).integers(0, 256, (channels, 90, 63)).astype(np.uint8)
    heat = Scan.from_array(scores, "cyx", kind="heatmap", channels=[f"class {i}" for i in range(channels)])
    got = read_plane(heat, (0, 0), (90, 63), (30, 21))
    expected = scores.reshape(channels, 30, 3, 21, 3).mean((2, 4)).transpose(1, 2, 0)
    np.testing.assert_allclose(got, expected, atol=0.51)


def test_strips_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    scan = Scan.from_array(smooth(900, 700), "yxc", pyramid=False)
    whole = read_plane(scan, (0, 0), (900, 700), (300, 233))
    monkeypatch.setattr("dhlab.view.tiles.STRIP_PIXELS", 20_000)
    parts = read_plane(scan, (0, 0), (900, 700), (300, 233))
    assert np.abs(whole.astype(int) - parts).max() <= 1


def test_images_are_opaque_and_equal_to_the_one_colour_path() -> None:
    from dhlab.display import to_rgb

    array = RNG.integers(0, 4000, (30, 20)).astype(np.int16)
    scan = Scan.from_array(array, "yx")
    rgba = to_rgba(array, scan)
    assert (rgba[..., 3] == 255).all()
    assert np.array_equal(rgba[..., :3], to_rgb(array, scan))
