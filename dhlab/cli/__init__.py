"""The command line: ``dhlab info``, ``tissue``, ``predict``, ``train``, ``evaluate`` …; ``dhlab --help`` lists all."""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import TYPE_CHECKING, Any

from dhlab.cli import learning, scans
from dhlab.errors import DHLabError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 failed with a message, 2 wrong usage, 130 interrupted.

    Parameters
    ----------
    arguments
        Words after the program's name; None takes them from the shell.
    """
    options = _parser().parse_args(arguments)
    try:
        result = options.run(options)
        _print(result, options.json)
        sys.stdout.flush()
    except DHLabError as error:
        print(f"dhlab {options.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"dhlab {options.command}: interrupted; the same command continues where it can.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, such as head, has enough: say nothing more, not even at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _parser() -> argparse.ArgumentParser:
    import dhlab

    parser = argparse.ArgumentParser(
        prog="dhlab",
        description="Whole slides and other scans, models and annotations for biomedical research.",
        epilog="For research use only. Each command has its own help: dhlab predict --help.",
    )
    parser.add_argument("--version", action="version", version=f"dhlab {dhlab.__version__}")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--json", action="store_true", help="print the result as JSON")
    shared.add_argument("--quiet", action="store_true", help="show no progress")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    def add(name: str, run: Any, text: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text, parents=[*parents, shared])
        command.set_defaults(run=run)
        return command

    scans.add_commands(add)
    learning.add_commands(add)
    return parser


def _print(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(result, indent=1, ensure_ascii=False))
        return
    for key, value in result.items():
        _print_item(key, value)


def _print_item(key: str, value: Any) -> None:
    if isinstance(value, list) and value and isinstance(value[0], dict):
        print(f"\n{key}")
        columns = list(value[0])
        rows = [[str(row.get(c, "")) for c in columns] for row in value]
        widths = [max(len(c), *(len(r[i]) for r in rows)) for i, c in enumerate(columns)]
        for line in (columns, *rows):
            print("  " + "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())
    elif isinstance(value, dict):
        print(f"{key}: " + ", ".join(f"{k} {v}" for k, v in value.items()))
    elif isinstance(value, list):
        print(f"{key}: {', '.join(map(str, value))}")
    else:
        print(f"{key}: {value}")
