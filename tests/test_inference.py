"""`predict`: equal to a plain float64 definition for every kind of scan; bounded, resumable, loud when it fails."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dhlab import inference
from dhlab.errors import BadFileError, BadShapeError, BadValueError, ConflictError, DHLabWarning
from dhlab.grid import TileGrid
from dhlab.inference import predict
from dhlab.io import open as open_scan
from dhlab.kernels.blend import gaussian_weights
from dhlab.models import Model, ModelCard, create_model, load_model
from dhlab.packaging import export
from dhlab.scan import Scan

ROOT = Path(__file__).parents[1]


class Place(torch.nn.Module):
    """Channels scaled by where in the window a pixel lies: blending then matters everywhere."""

    def __init__(self, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x[(..., *(slice(None, None, self.stride) for _ in x.shape[2:]))]
        return x * ramp(tuple(x.shape[2:])).to(x)


class Copy(torch.nn.Module):
    """The input itself."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class Mean(torch.nn.Module):
    """The mean of each channel: a classifier."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(2).mean(dim=2)


def ramp(size: tuple[int, ...]) -> torch.Tensor:
    total = torch.zeros(())
    for n in size:
        total = total.unsqueeze(-1) + (torch.arange(n) + 1) / (n * len(size))
    return total


def model_of(net: torch.nn.Module, axes: str, tile: Sequence[int], **fields: Any) -> Model:
    """Wrap a network that takes and gives 0..1; one class per channel."""
    channels = fields.pop("channels", 3 if "c" in axes else 1)
    settings = {
        "spacing": (1.0,) * len(tile),
        "unit": "px",
        "mean": (0.0,) * channels,
        "std": (1.0,) * channels,
        "activation": "none",
    }
    classes = tuple(f"class {i}" for i in range(channels))
    card = ModelCard(
        type(net).__name__, "none", fields.pop("task", "segmentation"), classes, tuple(tile), axes=axes,
        **(settings | fields),
    )  # fmt: skip
    return Model(net, card)


def noise(*shape: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def heat_of(scan: Scan) -> NDArray[np.uint8]:
    return np.asarray(scan.levels[0][...])


def naive(array: NDArray[np.uint8], axes: str, tile: Sequence[int], *, overlap: float, stride: int = 1) -> NDArray:
    """Define `predict` with `Place`: a whole canvas in float64, one window after the other."""
    channels_first = np.moveaxis(array, axes.index("c"), 0) if "c" in axes else array[None]
    space = channels_first.shape[1:]
    step = [max(stride, round(t * (1 - overlap)) // stride * stride) for t in tile]
    starts = [range(0, max(1, n - t + s) if n > t else 1, s) for n, t, s in zip(space, tile, step, strict=True)]
    padded = np.pad(channels_first, [(0, 0), *((0, 2 * t) for t in tile)]).astype(np.float64) / 255
    out = tuple(t // stride for t in tile)
    sums, total = np.zeros((len(padded), *(n // stride + 1 for n in padded.shape[1:]))), 0.0
    total = np.zeros(sums.shape[1:])
    weights, place = gaussian_weights(out).double().numpy(), ramp(out).double().numpy()
    for corner in itertools.product(*starts):
        window = padded[(slice(None), *(slice(c, c + t, stride) for c, t in zip(corner, tile, strict=True)))]
        target = tuple(slice(c // stride, c // stride + t) for c, t in zip(corner, out, strict=True))
        sums[(slice(None), *target)] += window * place * weights
        total[target] += weights
    inside = tuple(slice(0, math.ceil(n / stride)) for n in space)
    return sums[(slice(None), *inside)] / total[inside] * 255


CASES = [
    ("yxc", (1, 1, 3), (16, 16)),
    ("yxc", (63, 101, 3), (16, 16)),
    ("yxc", (64, 64, 3), (64, 64)),
    ("yxc", (131, 37, 3), (32, 17)),
    ("yxc", (7, 200, 3), (16, 24)),
    ("cyx", (3, 61, 45), (16, 16)),
    ("yx", (50, 33), (11, 13)),
    ("zyx", (11, 37, 41), (4, 16, 16)),
    ("zyx", (5, 16, 16), (2, 16, 16)),
    ("ct", (3, 997), (64,)),
    ("ct", (3, 10), (64,)),
    ("t", (501,), (63,)),
]


@pytest.mark.parametrize(("axes", "shape", "tile"), CASES)
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.8])
def test_equals_a_plain_definition(axes: str, shape: tuple[int, ...], tile: tuple[int, ...], overlap: float) -> None:
    array = noise(*shape)
    heat = predict(
        model_of(Place(), axes, tile), Scan.from_array(array, axes), overlap=overlap, batch_size=5, progress=False
    )
    truth = naive(array, axes, tile, overlap=overlap)
    assert heat.axes == "c" + axes.replace("c", "")
    assert heat_of(heat).shape == truth.shape
    # Half a grey level of rounding and what float32 adds.
    assert np.abs(heat_of(heat) - truth).max() <= 0.5 + 1e-3


@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.5])
def test_output_stride(overlap: float) -> None:
    array = noise(67, 90, 3)
    model = model_of(Place(4), "yxc", (32, 16), output_stride=4)
    heat = predict(model, Scan.from_array(array, "yxc"), overlap=overlap, progress=False)
    truth = naive(array, "yxc", (32, 16), overlap=overlap, stride=4)
    assert heat.spacing == (4.0, 4.0)
    assert heat_of(heat).shape == (3, 17, 23) == truth.shape
    assert np.abs(heat_of(heat) - truth).max() <= 0.5 + 1e-3


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.9])
def test_no_seams(overlap: float) -> None:
    """A network that copies gives back the scan, to the bit."""
    array = noise(149, 83, 3)
    heat = predict(model_of(Copy(), "yxc", (32, 32)), Scan.from_array(array, "yxc"), overlap=overlap, progress=False)
    np.testing.assert_array_equal(heat_of(heat), np.moveaxis(array, -1, 0))


@pytest.mark.parametrize("batch_size", [1, 2, 3, 17, 64, 500])
def test_batches_do_not_matter(batch_size: int) -> None:
    scan = Scan.from_array(noise(100, 60, 3), "yxc")
    model = model_of(Place(), "yxc", (16, 16))
    reference = predict(model, scan, overlap=0.5, progress=False)
    heat = predict(model, scan, overlap=0.5, batch_size=batch_size, progress=False)
    np.testing.assert_array_equal(heat_of(heat), heat_of(reference))


def test_reads_at_the_spacing_of_the_card() -> None:
    y, x = np.mgrid[:80, :120]
    array = np.stack([y + x, 2 * y, 255 - 2 * x], axis=-1).clip(0, 255).astype(np.uint8)
    scan = Scan.from_array(array, "yxc", spacing=0.5, unit="µm", name="slide", pyramid=False)
    model = model_of(Copy(), "yxc", (16, 16), unit="µm")
    heat = predict(model, scan, overlap=0.5, progress=False)
    assert (heat.shape, heat.spacing, heat.unit, heat.kind) == ((40, 60), (1.0, 1.0), "µm", "heatmap")
    assert heat.channels == model.card.classes
    assert heat.parent == scan.as_parent()
    truth = np.moveaxis(array.astype(float).reshape(40, 2, 60, 2, 3).mean((1, 3)), -1, 0)
    assert np.abs(heat_of(heat) - truth)[:, 2:-2, 2:-2].max() <= 1.5


def test_classification_gives_one_pixel_per_window() -> None:
    array = noise(70, 50, 3)
    model = model_of(Mean(), "yxc", (16, 16), task="classification")
    scan = Scan.from_array(array, "yxc")
    heat = predict(model, scan, overlap=0.5, batch_size=3, progress=False)
    grid = TileGrid.cover(scan, 16, overlap=0.5)
    assert heat.shape == grid.shape
    assert heat.spacing == (8.0, 8.0)
    assert heat.origin == (4.0, 4.0), "the pixel lies in the middle of its window"
    padded = np.pad(array, [(0, 16), (0, 16), (0, 0)]).astype(float)
    truth = [padded[y : y + 16, x : x + 16].mean((0, 1)) for y, x in grid]
    assert np.abs(heat_of(heat).reshape(3, -1).T - np.array(truth)).max() <= 0.5 + 1e-3


def test_a_heat_map_can_be_predicted_again() -> None:
    first = predict(
        model_of(Copy(), "yxc", (32, 32)), Scan.from_array(noise(50, 60, 3), "yxc"), overlap=0, progress=False
    )
    again = predict(model_of(Copy(), "yxc", (16, 16)), first, overlap=0.5, progress=False)
    np.testing.assert_array_equal(heat_of(again), heat_of(first))
    assert again.parent == first.as_parent()


def test_only_windows_that_see_the_mask() -> None:
    array = np.full((64, 96, 3), 200, np.uint8)
    mask = np.zeros((8, 12), np.uint8)
    mask[5, 7] = 1
    tissue = Scan.from_array(mask, "yx", spacing=8.0, kind="mask", name="tissue")
    heat = predict(
        model_of(Copy(), "yxc", (16, 16)), Scan.from_array(array, "yxc"), overlap=0, within=tissue, progress=False
    )
    seen = np.zeros((64, 96), bool)
    seen[32:48, 48:64] = True
    assert (heat_of(heat)[:, seen] == 200).all()
    assert (heat_of(heat)[:, ~seen] == 0).all()
    assert heat.meta["within"] == {"mask": "tissue", "windows": 1, "of": 24}
    assert heat.meta["stages"]["tiles"] == 1


def test_empty_tissue_is_zero_and_said() -> None:
    empty = Scan.from_array(np.zeros((8, 8), np.uint8), "yx", spacing=8.0, kind="mask", name="tissue")
    with pytest.warns(DHLabWarning, match="no window"):
        heat = predict(
            model_of(Copy(), "yxc", (16, 16)), Scan.from_array(noise(64, 64, 3), "yxc"), within=empty, progress=False
        )
    assert heat_of(heat).shape == (3, 64, 64)
    assert not heat_of(heat).any()


def test_unknown_spacing_is_assumed_and_said() -> None:
    scan = Scan.from_array(noise(40, 40, 3), "yxc")
    model = model_of(Copy(), "yxc", (16, 16), unit="µm", spacing=(0.5, 0.5))
    with pytest.warns(DHLabWarning, match="states no pixel size"):
        heat = predict(model, scan, progress=False)
    assert (heat.unit, heat.spacing) == ("px", (1.0, 1.0))
    np.testing.assert_array_equal(heat_of(heat), np.moveaxis(np.asarray(scan.levels[0]), -1, 0))


def test_too_coarse_a_scan_is_said() -> None:
    scan = Scan.from_array(noise(40, 40, 3), "yxc", spacing=4.0, unit="µm")
    with pytest.warns(DHLabWarning, match="enlarged"):
        predict(model_of(Copy(), "yxc", (16, 16), unit="µm"), scan, progress=False)


@pytest.mark.parametrize(
    ("scan", "error", "match"),
    [
        (Scan.from_array(noise(40, 40, 4), "yxc"), BadShapeError, "4 channels"),
        (Scan.from_array(noise(40, 40), "yx"), BadShapeError, "1 channels .no axis c.; model 'Copy' expects 3"),
        (Scan.from_array(noise(40, 40, 3).astype(np.uint16), "yxc"), BadShapeError, "holds uint16"),
        (Scan.from_array(noise(4, 40, 40), "zyx"), BadShapeError, "axes 'zyx'"),
        (Scan.from_array(noise(40, 40, 3), "yxc", unit="mm"), BadValueError, "measured in mm"),
    ],
)
def test_refuses_scans_that_do_not_suit(scan: Scan, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        predict(model_of(Copy(), "yxc", (16, 16), unit="µm"), scan, progress=False)


def test_refuses_bad_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, scan = model_of(Copy(), "yxc", (16, 16)), Scan.from_array(noise(40, 40, 3), "yxc")
    with pytest.raises(BadValueError, match="batch_size"):
        predict(model, scan, batch_size=0, progress=False)
    with pytest.raises(BadValueError, match="overlap"):
        predict(model, scan, overlap=1, progress=False)
    with pytest.raises(BadValueError, match=r"\.ome\.zarr"):
        predict(model, scan, out=tmp_path / "heat.tif", progress=False)
    monkeypatch.setattr(inference, "MEMORY_LIMIT", 1000)
    with pytest.raises(BadValueError, match="Pass out="):
        predict(model, scan, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_leaves_model_and_threads_as_they_were() -> None:
    model = create_model("unet", ["a", "b"], tile=16, spacing=1.0, unit="px", width=4).train()
    model.net.head.eval()
    before, threads = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_num_threads()
    predict(model, Scan.from_array(noise(40, 40, 3), "yxc"), progress=False)
    assert model.training
    assert not model.net.head.training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert torch.get_num_threads() == threads
    assert all(p.requires_grad for p in model.parameters())
    assert not our_threads()


def test_out_of_memory_halves_the_batch() -> None:
    class Hungry(Copy):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if len(x) > 2:
                raise torch.OutOfMemoryError("tried to allocate 80 GiB")
            return x

    array = noise(64, 160, 3)
    model = model_of(Hungry(), "yxc", (16, 16))
    with pytest.warns(DHLabWarning, match="out of memory"):
        heat = predict(model, Scan.from_array(array, "yxc"), batch_size=16, progress=False)
    np.testing.assert_array_equal(heat_of(heat), np.moveaxis(array, -1, 0))


def test_one_window_that_does_not_fit_is_said() -> None:
    class Starved(Copy):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise torch.OutOfMemoryError("tried to allocate 80 GiB")

    with (
        pytest.warns(DHLabWarning, match="out of memory"),
        pytest.raises(BadValueError, match="one window"),
    ):
        predict(
            model_of(Starved(), "yxc", (16, 16)), Scan.from_array(noise(32, 32, 3), "yxc"), batch_size=4, progress=False
        )


def test_scores_that_are_not_finite_are_refused() -> None:
    class Broken(Copy):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x / 0

    with pytest.raises(BadValueError, match="not finite"):
        predict(model_of(Broken(), "yxc", (16, 16)), Scan.from_array(noise(32, 32, 3), "yxc"), progress=False)


def test_a_graph_scores_like_its_model(tmp_path: Path) -> None:
    scan = Scan.from_array(noise(90, 70, 3), "yxc", unit="µm")
    model = create_model("unet", ["a", "b", "c"], tile=32, spacing=1.0, width=8)
    with torch.no_grad():
        model.net.head.weight.mul_(20)
    folder = export(model, tmp_path / "package")
    heats = [
        heat_of(predict(m, scan, progress=False)).astype(int)
        for m in (model, load_model(folder), load_model(folder / "model.onnx", card=folder / "config.json"))
    ]
    assert heats[0].std() > 5
    np.testing.assert_array_equal(heats[0], heats[1])
    assert np.abs(heats[0] - heats[2]).max() <= 1


class Torn:
    """A level whose lower half cannot be decoded."""

    def __init__(self, array: NDArray) -> None:
        self.array, self.shape, self.dtype = array, array.shape, array.dtype

    def __getitem__(self, key: Any) -> NDArray:
        if key[0].stop > 100:
            raise BadFileError("tile 7 cannot be decoded")
        return self.array[key]


def our_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("dhlab-predict")]


def test_a_damaged_scan_surfaces_and_leaves_nothing_running() -> None:
    scan = Scan(levels=(Torn(noise(300, 64, 3)),), axes="yxc", spacing=(1.0, 1.0))
    with pytest.raises(BadFileError, match="tile 7"):
        predict(model_of(Copy(), "yxc", (16, 16)), scan, progress=False)
    assert not our_threads()


def files_of(store: Path) -> dict[str, bytes]:
    return {str(p.relative_to(store)): p.read_bytes() for p in sorted(store.rglob("*")) if p.is_file()}


@pytest.mark.parametrize(
    ("axes", "shape", "tile"),
    [("yxc", (1300, 200, 3), (64, 64)), ("zyx", (20, 90, 70), (8, 32, 32)), ("ct", (3, 3000), (128,))],
)
def test_streams_what_memory_would_hold(tmp_path: Path, axes: str, shape: tuple, tile: tuple) -> None:
    scan, model = Scan.from_array(noise(*shape), axes, name="a scan"), model_of(Place(), axes, tile)
    memory = predict(model, scan, overlap=0.5, progress=False)
    disk = predict(model, scan, overlap=0.5, out=tmp_path / "heat map é.ome.zarr", progress=False)
    np.testing.assert_array_equal(heat_of(disk), heat_of(memory))
    for field in ("axes", "spacing", "unit", "origin", "channels", "kind", "parent", "name"):
        assert getattr(disk, field) == getattr(memory, field), field
    assert [p.name for p in tmp_path.iterdir()] == ["heat map é.ome.zarr"]


def test_a_finished_run_is_not_repeated(tmp_path: Path) -> None:
    scan, model, out = Scan.from_array(noise(90, 70, 3), "yxc"), model_of(Place(), "yxc", (16, 16)), tmp_path / "h.zarr"
    first = predict(model, scan, out=out, progress=False)
    again = predict(model, scan, out=out, progress=False)
    assert (first.meta["stages"]["tiles"] > 0, again.meta["stages"]["tiles"]) == (True, 0)
    np.testing.assert_array_equal(heat_of(first), heat_of(again))
    with pytest.raises(ConflictError, match="exists"):
        predict(model, scan, overlap=0.5, out=out, progress=False)
    with pytest.raises(ConflictError, match="exists"):
        predict(model, scan, out=out, resume=False, progress=False)
    other = predict(model, scan, overlap=0.5, out=out, overwrite=True, progress=False)
    assert other.meta["stages"]["tiles"] > first.meta["stages"]["tiles"]
    np.testing.assert_array_equal(heat_of(open_scan(out)), heat_of(predict(model, scan, overlap=0.5, progress=False)))
    assert predict(model, scan, overlap=0.5, out=out, overwrite=True, progress=False).meta["stages"]["tiles"] == 0


class Interrupted(Place):
    """Stops after some batches, as Ctrl-C does."""

    def __init__(self, batches: int) -> None:
        super().__init__()
        self.left = batches

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super().forward(x)


def test_an_interrupted_run_continues_to_the_same_bits(tmp_path: Path) -> None:
    scan = Scan.from_array(noise(3000, 70, 3), "yxc", pyramid=False)
    whole = tmp_path / "whole.zarr"
    model = model_of(Interrupted(10**9), "yxc", (48, 48))
    predict(model, scan, overlap=0.5, batch_size=4, out=whole, progress=False)
    out = tmp_path / "heat.zarr"
    for batches in (20, 5, 30):
        model.net.left = batches
        with pytest.raises(KeyboardInterrupt):
            predict(model, scan, overlap=0.5, batch_size=4, out=out, progress=False)
        assert not out.exists()
        assert not our_threads()
    model.net.left = 10**9
    heat = predict(model, scan, overlap=0.5, batch_size=4, out=out, progress=False)
    every = math.prod(TileGrid.cover(scan, 48, overlap=0.5).shape)
    assert 0 < heat.meta["stages"]["tiles"] < every, "what was written is not computed again"
    assert files_of(out) == files_of(whole)
    np.testing.assert_array_equal(heat_of(heat), heat_of(open_scan(whole)))


@pytest.mark.parametrize("change", ["weights", "scan", "overlap", "mask"])
def test_another_run_is_not_continued(tmp_path: Path, change: str) -> None:
    array = noise(1500, 40, 3)
    model = create_model("unet", ["a", "b"], tile=32, spacing=1.0, unit="px", width=2, depth=1)
    out, arguments = tmp_path / "heat.zarr", {"overlap": 0.5, "progress": False}
    fault = model.net.register_forward_hook(stop_after(30))
    with pytest.raises(KeyboardInterrupt):
        predict(model, Scan.from_array(array, "yxc"), batch_size=2, out=out, **arguments)
    fault.remove()
    if change == "weights":
        with torch.no_grad():
            model.net.head.bias[0] += 1e-3
    elif change == "scan":
        array[7, 7, 0] ^= 1
    elif change == "overlap":
        arguments["overlap"] = 0.25
    else:
        arguments["within"] = Scan.from_array(np.eye(40, dtype=np.uint8), "yx", spacing=30.0, kind="mask")
    with pytest.raises(ConflictError, match="resume=False"):
        predict(model, Scan.from_array(array, "yxc"), out=out, **arguments)
    anew = {"overwrite": True} if change == "weights" else {"resume": False}
    fresh = predict(model, Scan.from_array(array, "yxc"), out=out, **anew, **arguments)
    memory = predict(model, Scan.from_array(array, "yxc"), **arguments)
    np.testing.assert_array_equal(heat_of(fresh), heat_of(memory))


def stop_after(calls: int) -> Any:
    left = iter(range(calls))

    def hook(*_: Any) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt

    return hook


HEAD = f"""
import sys, os, json, time, random, signal, resource
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
from pathlib import Path
import numpy as np, torch
torch.set_num_threads(1)
import importlib.util
spec = importlib.util.spec_from_file_location("test_inference", {str(Path(__file__))!r})
test = importlib.util.module_from_spec(spec)
sys.modules["test_inference"] = test
spec.loader.exec_module(test)
from dhlab.errors import StorageError
from dhlab.inference import predict
from dhlab.scan import Scan
folder = Path(sys.argv[1])
"""


def run(program: str, folder: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", HEAD + program, str(folder)], capture_output=True, text=True, check=False, timeout=280
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


KILLS = """
class Slow(test.Place):
    def forward(self, x):
        time.sleep(0.004)
        return super().forward(x)

scan = Scan.from_array(test.noise(6000, 60, 3), "yxc", pyramid=False)
model = test.model_of(Slow(), "yxc", (48, 48))

def go(out):
    return predict(model, scan, overlap=0.5, batch_size=3, out=out, progress=False)

def attempt(out, delay):
    child = os.fork()
    if child == 0:
        try:
            go(out)
        finally:
            os._exit(0)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])

whole, out = folder / "whole.ome.zarr", folder / "heat.ome.zarr"
begin = time.perf_counter()
child = os.fork()
if child == 0:
    go(whole)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
full = time.perf_counter() - begin
rng, kills, early, finished = random.Random(int(sys.argv[2]) if len(sys.argv) > 2 else 1), 0, 0, 0
expected = test.files_of(whole)
while kills < 20:
    if attempt(out, rng.uniform(0, 0.3 * full)):
        kills += 1
    if out.exists():
        assert test.files_of(out) == expected, "a store that is there is whole"
        finished += 1
        import shutil
        shutil.rmtree(out)
    else:
        early += 1
heat = go(out)
print(json.dumps({"kills": kills, "unfinished": early, "finished": finished, "tiles": heat.meta["stages"]["tiles"],
                  "same": test.files_of(out) == expected, "left": sorted(p.name for p in folder.iterdir())}))
"""


@pytest.mark.slow
def test_twenty_kills_lose_nothing(tmp_path: Path) -> None:
    result = run(KILLS, tmp_path)
    assert result["kills"] == 20
    assert result["unfinished"] >= 10
    assert result["same"]
    assert result["left"] == ["heat.ome.zarr", "whole.ome.zarr"]


MEMORY = """
class Lazy:
    dtype = np.dtype("uint8")
    def __init__(self, height):
        self.shape = (height, 256, 3)
    def __getitem__(self, key):
        size = [len(range(*s.indices(n))) for s, n in zip(key, self.shape)]
        return np.full(size, 100, np.uint8)

model = test.model_of(test.Copy(), "yxc", (128, 128))
peaks = []
for height in (40_000, 200_000):
    scan = Scan(levels=(Lazy(height),), axes="yxc", spacing=(1.0, 1.0), meta={"path": __import__("os").__file__})
    heat = predict(model, scan, out=folder / f"{height}.ome.zarr", progress=False)
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
assert (heat.read((100_000, 0), (200, 256)) == 100).all()
print(json.dumps({"peaks": peaks, "heat": 200_000 * 256 * 3 / 2**20}))
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_scan(tmp_path: Path) -> None:
    result = run(MEMORY, tmp_path)
    small, large = result["peaks"]
    print(f"peak {small:.0f} MiB, then {large:.0f} MiB for a heat map of {result['heat']:.0f} MiB")
    assert large - small < result["heat"] / 2


DISK = """
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
scan = Scan.from_array(test.noise(3000, 400, 3), "yxc", pyramid=False)
model = test.model_of(test.Place(), "yxc", (64, 64))
out = folder / "heat.ome.zarr"
limits = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, limits[1]))
try:
    predict(model, scan, out=out, progress=False)
    said = ""
except StorageError as error:
    said = str(error)
resource.setrlimit(resource.RLIMIT_FSIZE, limits)
there = out.exists()
heat = predict(model, scan, out=out, progress=False)
memory = predict(model, scan, progress=False)
same = bool((np.asarray(heat.levels[0][...]) == np.asarray(memory.levels[0][...])).all())
print(json.dumps({"said": said, "there": there, "same": same, "threads": test.our_threads()}))
"""


def test_a_disk_that_refuses_is_said_and_the_run_continues(tmp_path: Path) -> None:
    result = run(DISK, tmp_path)
    assert "cannot write" in result["said"]
    assert not result["there"]
    assert result["same"]
    assert result["threads"] == []


def test_the_stage_report_adds_up() -> None:
    heat = predict(model_of(Place(), "yxc", (16, 16)), Scan.from_array(noise(90, 90, 3), "yxc"), progress=False)
    stages = heat.meta["stages"]
    assert json.loads(json.dumps(stages)) == stages
    assert stages["tiles"] == math.prod(
        TileGrid.cover(Scan.from_array(noise(90, 90, 3), "yxc"), 16, overlap=0.25).shape
    )
    assert stages["waiting"] + stages["computing"] + stages["stalled"] <= stages["seconds"] + 0.01
    assert 0 < stages["device_share"] <= 1
    assert stages["advice"].endswith(".")


@pytest.mark.parametrize(
    ("slowest", "word"), [("computing", "network"), ("waiting", "Reading"), ("stalled", "Writing")]
)
def test_advice_names_the_bottleneck(slowest: str, word: str) -> None:
    seconds = {"computing": 1.0, "waiting": 1.0, "stalled": 1.0} | {slowest: 9.0}
    assert word in inference._advice(seconds, seconds["computing"] / 11, 5)
    assert "nothing" in inference._advice(seconds, 0.0, 0)
