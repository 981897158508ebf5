"""Write dhlab/augment/README.md: run every line of the table, and stop if one differs by more than it says."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from table import README, SECTIONS, text


def main() -> None:
    faults = 0
    for title, rows in SECTIONS.items():
        print(title)
        for row in rows:
            found = row.run()
            faults += found > row.bound
            mark = "" if found <= row.bound else "  << more than it says"
            print(f"  {row.theirs:45} {row.ours:32} {found:10.4g} of {row.bound:g} {row.unit}{mark}")
    if faults:
        raise SystemExit(f"{faults} lines differ by more than they say; {README} is left as it is.")
    README.write_text(text(), "utf-8")


if __name__ == "__main__":
    main()
