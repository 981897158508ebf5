"""Progress of long work: a bar in a terminal, a widget in a notebook, a function that is told, or nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

    from tqdm import tqdm

__all__ = ["Progress", "progress_bar"]

# Whether a bar is shown; or what is called with the steps that are done and all steps, and ends the work by raising.
Progress: TypeAlias = "bool | Callable[[int, int], None]"


def progress_bar(total: int, description: str, *, shown: Progress = True, unit: str = "it") -> tqdm[Any]:
    """Return a bar to call ``update(n)`` on, best used with ``with``.

    Parameters
    ----------
    total
        Number of steps.
    description
        Text before the bar.
    shown
        False makes a bar that shows nothing; a function is called with the steps that are done and the total.
    unit
        What a step is called.

    Returns
    -------
    tqdm
        The bar; it leaves one line behind.
    """
    from tqdm.auto import tqdm

    if callable(shown):
        tell = shown

        class Told(tqdm):  # type: ignore[type-arg] # it takes none where it runs
            """Shows nothing; whoever asked is told instead."""

            done = 0

            def update(self, n: float | None = 1) -> bool | None:
                self.done += int(n or 0)
                tell(self.done, total)
                return None

        return Told(total=total, disable=True)
    bar: tqdm[Any] = tqdm(total=total, desc=description, disable=not shown, unit=unit, mininterval=0.5)
    return bar
