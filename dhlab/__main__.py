"""``python -m dhlab`` is the command line."""

from dhlab.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
