"""How soon what is drawn is saved, seen elsewhere and learned, and what is learned of it (``annotation/<case>.py``)."""

from __future__ import annotations

from harness import main_of_cases

if __name__ == "__main__":
    main_of_cases("annotation", rounds=5)
