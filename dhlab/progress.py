"""How far long work is: a bar in a terminal, a widget in a notebook, a function that is told, the table of jobs."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from dhlab import env
from dhlab.atomic import atomic_write_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from tqdm import tqdm

__all__ = ["Progress", "progress_bar", "report_progress"]

# Whether a bar is shown; or what is called with the steps that are done and all steps, and ends the work by raising.
Progress: TypeAlias = "bool | Callable[[int, int], None]"
SECONDS_BETWEEN_REPORTS = 1.0
_reported: dict[str, float] = {}  # when, of each job


def report_progress(
    done: float,
    *,
    rate: float | None = None,
    seconds_left: float | None = None,
    loss: float | None = None,
    text: str = "",
) -> None:
    """Tell whoever looks at the job how far it is; does nothing outside a job.

    Call it as often as you like: it writes once a second. Of several workers only one shall.

    Parameters
    ----------
    done
        Share that is done, 0 to 1.
    rate
        Samples, or whatever is counted, per second.
    seconds_left
        Time until it is done.
    loss
        Loss of the last batches of a training.
    text
        Anything else, in a few words.
    """
    folder, now = env.get("DHLAB_JOB"), time.monotonic()
    early = now - _reported.get(folder, 0.0) < SECONDS_BETWEEN_REPORTS and done < 1
    if not folder or early:
        return
    _reported[folder] = now
    numbers = {"rate": rate, "seconds_left": seconds_left, "loss": loss}
    # Browsers read no JSON with NaN or infinity.
    known = {name: value for name, value in numbers.items() if value is not None and math.isfinite(value)}
    told = {"done": done, "text": text, **known}
    atomic_write_text(Path(folder) / "progress.json", json.dumps(told))


def progress_bar(
    total: int, description: str, *, shown: Progress = True, unit: str = "it", reported: bool = True
) -> tqdm[Any]:
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
    reported
        Also report the progress of the job that this runs in (see `report_progress`).

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

    class Reported(tqdm):  # type: ignore[type-arg] # as above
        """Tells the table of jobs too."""

        def update(self, n: float | None = 1) -> bool | None:
            drawn = super().update(n)
            if self.n and not self.disable:
                rate = self.n / max(1e-9, time.time() - self.start_t)
                report_progress(self.n / total, rate=rate, seconds_left=(total - self.n) / rate, text=description)
            return drawn

    bar = Reported if reported and env.get("DHLAB_JOB") and env.get("HOROVOD_RANK") in ("", "0") else tqdm
    return bar(total=total, desc=description, disable=not shown, unit=unit, mininterval=0.5)
