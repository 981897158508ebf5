"""How soon a slide is on the screen: its tiles at the source, over HTTP, in the browser (``viewer/<case>.py``)."""

from __future__ import annotations

from harness import main_of_cases

if __name__ == "__main__":
    main_of_cases("viewer", rounds=5)
