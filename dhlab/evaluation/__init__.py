"""Evaluation: how good a model is on unseen samples, whether its scores mean what they say, how far people agree."""

from __future__ import annotations

from dhlab.evaluation.agreement import Agreement, compare_annotators
from dhlab.evaluation.calibration import calibrate
from dhlab.evaluation.evaluating import evaluate

__all__ = ["Agreement", "calibrate", "compare_annotators", "evaluate"]
