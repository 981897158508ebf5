"""Wait for what happens in another process."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Value = TypeVar("Value")


def wait_for(condition: Callable[[], Value], seconds: float = 120) -> Value:
    """Return what a condition gives as soon as that is true; busy machines may take long."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited for too long"
        time.sleep(0.02)
    return value
