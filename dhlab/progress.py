"""Progress bars for long work: a bar in a terminal, a widget in a notebook, nothing when switched off."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm

__all__ = ["progress_bar"]


def progress_bar(total: int, description: str, *, shown: bool = True, unit: str = "it") -> tqdm[Any]:
    """Return a bar to call ``update(n)`` on, best used with ``with``.

    Parameters
    ----------
    total
        Number of steps.
    description
        Text before the bar.
    shown
        False makes a bar that shows nothing.
    unit
        What a step is called.

    Returns
    -------
    tqdm
        The bar; it leaves one line behind.
    """
    from tqdm.auto import tqdm

    bar: tqdm[Any] = tqdm(total=total, desc=description, disable=not shown, unit=unit, mininterval=0.5)
    return bar
