"""The headless viewer: layers come and go, the view in pixels and µm, events, settings, links."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely

import dhlab as dh
from dhlab.display import class_color
from dhlab.errors import BadValueError, UnknownNameError
from dhlab.view.scene import describe_layer
from dhlab.view.viewer import Viewer


def slide(**changes: Any) -> dh.Scan:
    pixels = np.full((300, 400, 3), 250, np.uint8)
    return dh.Scan.from_array(pixels, "yxc", **({"spacing": 0.5, "unit": "µm", "name": "slide"} | changes))


def heat(name: str = "heat") -> dh.Scan:
    scores = np.zeros((2, 30, 40), np.float32)
    scores[1, :, 20:] = 1
    return dh.Scan.from_array(scores, "cyx", spacing=5, unit="µm", name=name, kind="heatmap", channels=["a", "b"])


def zones(count: int = 3) -> dh.Annotations:
    boxes = [shapely.box(10 * i, 5, 10 * i + 8, 50) for i in range(count)]
    return dh.Annotations.from_geometries(boxes, [("tumour", "stroma", None)[i % 3] for i in range(count)])


def test_layers_come_and_go_and_every_change_is_one_event() -> None:
    viewer = Viewer(slide(), heat())
    seen: list[tuple[list[str], set[str]]] = []
    viewer.observe(lambda change: seen.append(([one.name for one in change["new"]], set(viewer.settings))), "layers")
    added = viewer.add(zones())
    twin = viewer.add(heat())
    assert (added.name, twin.name, twin.id) == ("annotations", "heat 2", 3)
    viewer.remove("heat")
    again = viewer.add(heat(), name="again")
    assert again.id == 4
    # Whoever is told of the layers finds their settings there already.
    assert seen == [
        (["slide", "heat", "annotations"], {"0", "1", "2"}),
        (["slide", "heat", "annotations", "heat 2"], {"0", "1", "2", "3"}),
        (["slide", "annotations", "heat 2"], {"0", "2", "3"}),
        (["slide", "annotations", "heat 2", "again"], {"0", "2", "3", "4"}),
    ]
    assert repr(viewer) == "Viewer of slide, annotations, heat 2, again"
    with pytest.raises(BadValueError, match="hide it"):
        viewer.remove("slide")
    with pytest.raises(UnknownNameError, match="again"):
        viewer.remove("stroma")
    with pytest.raises(BadValueError, match="spacing"):
        viewer.add(dh.Scan.from_array(np.zeros((80, 60)), "yx", spacing=0.1, unit="s"))
    assert len(viewer.layers) == 4
    with pytest.raises(BadValueError, match="Open files"):
        viewer.add("slide.svs")  # type: ignore[arg-type] # wrong, as is tried here


def test_a_layer_keeps_its_settings_when_its_thing_is_replaced() -> None:
    viewer = Viewer(slide(), heat(), zones())
    viewer.set_layer("heat", opacity=0.9, channel="b")
    viewer.set_layer("annotations", class_colors={"stroma": (1, 2, 3)}, hidden=[0])
    new = viewer.replace("heat", heat("other"))
    assert (new.name, new.id, new.revision) == ("heat", 1, 1)
    assert viewer.settings["1"] | {"opacity": 0.9, "channel": 1} == viewer.settings["1"]
    viewer.replace("annotations", zones(6))
    assert viewer.settings["2"]["class_colors"][1] == [1, 2, 3]
    # With other classes the old choice says nothing.
    viewer.replace("annotations", zones(1))
    assert (viewer.settings["2"]["class_colors"], viewer.settings["2"]["hidden"]) == ([list(class_color(0))], [])
    for name, thing in (("heat", zones()), ("annotations", heat()), ("slide", slide())):
        with pytest.raises(BadValueError, match="another"):
            viewer.replace(name, thing)


def test_the_view_is_known_in_pixels_and_in_micrometres() -> None:
    viewer = Viewer(slide(spacing=(0.5, 0.25)))
    assert (viewer.position, viewer.resolution, viewer.unit) == (None, None, "µm")
    assert viewer.region == ((0, 0), (300, 400))
    events: list[str] = []
    viewer.observe(lambda change: events.append(change["name"]), ["center", "zoom"])
    viewer.position, viewer.resolution = (50.0, 40.0), 0.5
    assert (viewer.center, viewer.zoom) == ((100.0, 160.0), 0.5)
    assert events == ["center", "zoom"]
    viewer.size = (100.0, 300.0)
    # A screen pixel is 0.5 µm high and wide: one pixel of the slide down, two across.
    assert viewer.region == ((50.0, -140.0), (100.0, 600.0))
    viewer.fit()
    assert viewer.position is None
    with pytest.raises(BadValueError, match="resolution"):
        viewer.resolution = 0.0


@pytest.mark.parametrize(
    "wrong", [[(1, 2, 3)], [(1, 2)] * 3, [(1, 2, 300)] * 3, "red", {"tumour": "red"}, {"tumour": (1, 2, 3.5, 4)}, None]
)
def test_colours_that_are_none_are_refused(wrong: Any) -> None:
    viewer = Viewer(slide(), zones())
    with pytest.raises(BadValueError, match="triples"):
        viewer.set_layer("annotations", class_colors=wrong)


def test_class_colours_are_seen_in_the_snapshot_and_hidden_classes_are_not() -> None:
    viewer = Viewer(slide(), zones())
    viewer.set_layer("annotations", class_colors={"tumour": (200, 0, 0), "no class": (0, 200, 0)}, hidden=[1])
    picture = viewer.snapshot(400, legend=False).astype(int)
    assert picture[25, 4, 0] > picture[25, 4, 1] + 20
    assert picture[25, 14].min() == 250
    with pytest.raises(UnknownNameError, match="tumour"):
        viewer.set_layer("annotations", class_colors={"tumor": (1, 2, 3)})


def test_only_a_plainly_opened_file_tells_the_browser_where_it_lies(tmp_path: Path) -> None:
    path = dh.save(slide(), tmp_path / "a.ome.zarr")
    viewer = Viewer(dh.open(path), heat(), dh.open(path, spacing=2.0))
    scenes = [describe_layer(layer, viewer.base) for layer in viewer.layers]
    assert [scene["source"] is None for scene in scenes] == [False, True, True]
    assert scenes[0]["source"]["path"] == str(path)


def test_closing_forgets_tiles_without_any_front() -> None:
    class Counted:
        shape, dtype, reads = (300, 400, 3), np.dtype("u1"), 0

        def __getitem__(self, key: Any) -> np.ndarray:
            Counted.reads += 1
            return np.zeros([k.stop - k.start for k in key], np.uint8)

    viewer = Viewer(dh.Scan((Counted(),), "yxc", (1, 1)))
    tiles = viewer.layers[0].tiles
    assert tiles is not None
    for _ in range(2):
        tiles.encode(0, 0, 0)
    assert Counted.reads == 1
    viewer.close()
    tiles.encode(0, 0, 0)
    assert Counted.reads == 2
