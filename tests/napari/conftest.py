"""napari's own fixtures on a screen that nobody sees, with the plugin of this checkout and none else."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

for module, plan in (
    ("napari", "the extra 'napari'"),
    ("qtpy", "pip install PySide6-Essentials"),
    ("pytestqt", "pytest-qt"),
):
    pytest.importorskip(module, reason=f"needs {module} ({plan})")

with warnings.catch_warnings():
    # Both are written for an older pydantic, which says so while they are imported.
    warnings.simplefilter("ignore", DeprecationWarning)
    from napari.utils._testsupport import (
        _SAVE_GRAPH_OPNAME,
        _disable_qt_warnings,
        make_napari_viewer,
        mock_app_model,
        pytest_runtest_makereport,
    )
    from napari.viewer import Viewer
    from npe2 import PluginManager, PluginManifest

from dhlab_napari.compilers import load_triton  # noqa: E402 - after what warns as it is imported

# Also for the tests of other folders that run in this process after these.
load_triton()

__all__ = ["_disable_qt_warnings", "make_napari_viewer", "mock_app_model", "pytest_runtest_makereport"]

MANIFEST = Path(__file__).parents[2] / "extensions" / "napari" / "dhlab_napari" / "napari.yaml"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is below this folder."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.napari)


@pytest.fixture(autouse=True)
def napari_options(request: pytest.FixtureRequest) -> None:
    """Give napari's fixtures the options that its plugin, which is switched off, would have made."""
    for name in ("--show-napari-viewer", _SAVE_GRAPH_OPNAME):
        setattr(request.config.option, name, False)


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> PluginManager:
    """Let napari know of dhlab alone."""
    manager = PluginManager()
    monkeypatch.setattr(manager, "discover", lambda *_, **__: None)
    monkeypatch.setattr(PluginManager, "instance", classmethod(lambda _: manager))
    manifest = PluginManifest.from_file(MANIFEST)
    manager.register(manifest)
    return manager


@pytest.fixture
def viewer(plugin: PluginManager, make_napari_viewer: Callable[..., Any], qtbot: Any) -> Viewer:
    """Return a viewer whose canvas is drawn."""
    shown = make_napari_viewer(show=True)
    shown.window.resize(1200, 800)
    return shown


@pytest.fixture
def picture(qtbot: Any) -> Callable[[Viewer], np.ndarray]:
    """Return a function that waits until everything is drawn and returns the canvas as RGB."""

    def take(viewer: Viewer) -> np.ndarray:
        qtbot.wait(50)
        return np.asarray(viewer.screenshot(canvas_only=True, flash=False))[..., :3].astype(int)

    return take
