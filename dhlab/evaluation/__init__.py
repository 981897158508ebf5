"""Evaluation: how good a model is on samples it has not seen, and whether its scores mean what they say."""

from __future__ import annotations

from dhlab.evaluation.calibration import calibrate
from dhlab.evaluation.evaluating import evaluate

__all__ = ["calibrate", "evaluate"]
