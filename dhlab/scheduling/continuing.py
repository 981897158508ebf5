"""Calls that keep their state in the job's folder: trainings and notebooks."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dhlab import env

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dhlab.report import Report

__all__ = ["NotebookCall", "TrainingCall"]


@dataclass(frozen=True)
class TrainingCall:
    """`fit`, with its run in the job's folder, so that it continues when the job is begun again."""

    __name__ = "fit"

    def __call__(self, *arguments: Any, **keywords: Any) -> Report:
        """Train."""
        from dhlab.training import fit

        return fit(*arguments, folder=Path(env.get("DHLAB_JOB")) / "run", **keywords)


@dataclass(frozen=True)
class NotebookCall:
    """A notebook, executed with parameters by papermill.

    Parameters
    ----------
    text
        The notebook as it was when it was submitted.
    name
        Its name without suffix.
    folder
        Where it runs.
    """

    text: str
    name: str
    folder: str

    @property
    def __name__(self) -> str:
        return self.name

    def __call__(self, *item: Mapping[str, Any], parameters: Mapping[str, Any] | None = None) -> Path:
        """Execute it and return the path of the executed copy; the cells before an error stay in it."""
        import papermill

        here = Path(env.get("DHLAB_JOB"))
        given, executed = here / f".{self.name}.ipynb", here / f"{self.name}.ipynb"
        given.write_text(self.text, "utf-8")
        values = {**(parameters or {}), **(item[0] if item else {})}
        language = _language(self.text)
        papermill.execute_notebook(given, executed, parameters=values, cwd=self.folder, progress_bar=False, **language)
        return executed


def _language(text: str) -> dict[str, str]:
    """Return what papermill must be told of a notebook that does not say what it is written in: Python."""
    said = json.loads(text)["metadata"]
    named = "language" in said.get("kernelspec", {}) or "language_info" in said
    return {} if named else {"kernel_name": said.get("kernelspec", {}).get("name", "python3"), "language": "python"}
