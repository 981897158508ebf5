"""Operating points: from which score on something counts as found, and where that was chosen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from dhlab.errors import BadValueError
from dhlab.evaluation.classes import ClassEvidence
from dhlab.evaluation.labels import LabelEvidence
from dhlab.metrics.ranking import check_rule, choose_threshold

if TYPE_CHECKING:
    from dhlab.datasets import Dataset
    from dhlab.evaluation.evidence import Evidence

__all__ = ["OperatingPoint", "check_point", "choose_point"]

Rule = float | str | Mapping[str, float] | None


@dataclass(frozen=True)
class OperatingPoint:
    """Thresholds, and how they came about.

    Parameters
    ----------
    thresholds
        One for the second of two classes, one per label, or none.
    text
        What they are, for the provenance.
    notes
        What must be read with them.
    """

    thresholds: tuple[float, ...] = ()
    text: str = ""
    notes: tuple[str, ...] = ()

    def apply(self, evidence: Evidence) -> Evidence:
        """Return evidence whose decisions are by these thresholds."""
        if not self.thresholds:
            return evidence
        if isinstance(evidence, ClassEvidence):
            return replace(evidence, threshold=self.thresholds[0])
        assert isinstance(evidence, LabelEvidence)
        return replace(evidence, thresholds=np.asarray(self.thresholds))


def check_point(rule: Rule, chosen_on: Dataset | None, dataset: Dataset) -> None:
    """Raise `BadValueError` if a rule is unknown or does not suit the task of a dataset."""
    if rule is None:
        if chosen_on is not None:
            raise BadValueError("operating_on without operating_point; expected 'youden' or {'sensitivity': share}.")
        return
    two = dataset.task == "classification" and len(dataset.classes) == 2
    if not two and dataset.task != "multilabel":
        raise BadValueError(
            f"operating_point with a {dataset.task} of {len(dataset.classes)} classes; expected a classification of "
            "two, or a multilabel task."
        )
    if isinstance(rule, (int, float)):
        if isinstance(rule, bool) or not math.isfinite(rule):
            raise BadValueError(f"operating_point {rule}; expected a finite score, or a rule such as 'youden'.")
        if chosen_on is not None:
            raise BadValueError(f"operating_on with operating_point {rule}: nothing is left to choose; leave one out.")
        return
    check_rule(rule)


def choose_point(rule: Rule, evidence: Evidence, chosen_on: Dataset | None) -> OperatingPoint:
    """Return the operating point that a rule gives on judged samples.

    Parameters
    ----------
    rule
        A score, a rule of `choose_threshold`, or None.
    evidence
        The samples to choose on.
    chosen_on
        The dataset that they are of, if it is not the one that is judged.

    Raises
    ------
    BadValueError
        If positives or negatives are absent.
    """
    if rule is None:
        return OperatingPoint()
    if isinstance(evidence, ClassEvidence):
        names, kinds = evidence.classes[1:], [(evidence.truth == 1, evidence.scores[:, 1])]
    else:
        assert isinstance(evidence, LabelEvidence)
        names = evidence.classes
        columns = zip(evidence.truth.T, evidence.scores.T, evidence.known.T, strict=True)
        kinds = [(truth[known] == 1, score[known]) for truth, score, known in columns]
    if isinstance(rule, (int, float)):
        return OperatingPoint(
            (float(rule),) * len(kinds), f"score {rule:g}, given", (f"Decisions at score {rule:g}, as given.",)
        )
    thresholds = []
    for name, (truth, score) in zip(names, kinds, strict=True):
        try:
            thresholds.append(choose_threshold(truth, score, rule))
        except BadValueError as error:
            where = "the judged samples" if chosen_on is None else f"operating_on={chosen_on.name!r}"
            raise BadValueError(f"no operating point for {name!r} on {where}: {error}") from error
    how = "Youden's index" if not isinstance(rule, Mapping) else " ".join(f"{k} ≥ {v:g}" for k, v in rule.items())
    scores = ", ".join(f"{name} from {score:.3g}" for name, score in zip(names, thresholds, strict=True))
    where = "these data" if chosen_on is None else f"{len(chosen_on)} other samples ({chosen_on.name})"
    text = f"{scores}, by {how} on {where}"
    notes = [f"Decisions: {text}." if len(names) <= 8 else f"Decisions by {text.partition(', by ')[2]}."]
    if chosen_on is None:
        notes.append(
            "The operating point was chosen on the very samples that it is judged on: sensitivity, specificity and all "
            "other figures of decisions are too good. Give operating_on=… the validation set."
        )
    return OperatingPoint(tuple(thresholds), text, tuple(notes))
