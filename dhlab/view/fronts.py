"""Other fronts than the notebook: found by name and loaded when they are asked for, so that none is needed."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dhlab.errors import MissingDependencyError, UnknownNameError, suggest

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["FRONTS", "find_front"]

# A front is `show(*things)`; the plugins stand on dhlab, and are known here by their names alone.
FRONTS = {"napari": "dhlab_napari.showing:show"}
PLANS = {"napari": 'pip install "dhlab[napari]" PySide6-Essentials'}


def find_front(name: str) -> Callable[..., Any]:
    """Return the function that shows things in a front.

    Parameters
    ----------
    name
        ``"napari"``.

    Raises
    ------
    UnknownNameError
        If there is no such front.
    MissingDependencyError
        If what it stands on is not installed.
    """
    if name not in FRONTS:
        raise UnknownNameError(f"no front {name!r}.{suggest(name, ['notebook', *FRONTS])}")
    module, _, function = FRONTS[name].partition(":")
    try:
        found: Callable[..., Any] = getattr(import_module(module), function)
    except ImportError as error:
        raise MissingDependencyError(
            f"{name} cannot be loaded here ({type(error).__name__}: {error}); plan: {PLANS[name]}"
        ) from error
    return found
