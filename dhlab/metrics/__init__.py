"""Figures of merit on NumPy arrays, each a plain formula, and the interval that belongs to it."""

from __future__ import annotations

from dhlab.metrics.agreement import cohen_kappa, fleiss_kappa
from dhlab.metrics.calibration import brier_score, expected_calibration_error, reliability_bins
from dhlab.metrics.confusion import (
    accuracy,
    balanced_accuracy,
    confusion_matrix,
    dice,
    iou,
    macro_f1,
    mean_defined,
    precision,
    sensitivity,
    specificity,
)
from dhlab.metrics.instances import (
    Matches,
    aggregated_jaccard,
    detection_f1,
    label_objects,
    match_objects,
    panoptic_quality,
)
from dhlab.metrics.intervals import bootstrap_interval, draw_weights, percentile_interval
from dhlab.metrics.ranking import (
    auc,
    average_precision,
    choose_threshold,
    mean_auc,
    precision_recall_curve,
    roc_curve,
    weighted_auc,
    weighted_average_precision,
)
from dhlab.metrics.regression import mean_absolute_error, r_squared, root_mean_squared_error
from dhlab.metrics.surfaces import average_surface_distance, hausdorff95, surface_distances

__all__ = [
    "Matches",
    "accuracy",
    "aggregated_jaccard",
    "auc",
    "average_precision",
    "average_surface_distance",
    "balanced_accuracy",
    "bootstrap_interval",
    "brier_score",
    "choose_threshold",
    "cohen_kappa",
    "confusion_matrix",
    "detection_f1",
    "dice",
    "draw_weights",
    "expected_calibration_error",
    "fleiss_kappa",
    "hausdorff95",
    "iou",
    "label_objects",
    "macro_f1",
    "match_objects",
    "mean_absolute_error",
    "mean_auc",
    "mean_defined",
    "panoptic_quality",
    "percentile_interval",
    "precision",
    "precision_recall_curve",
    "r_squared",
    "reliability_bins",
    "roc_curve",
    "root_mean_squared_error",
    "sensitivity",
    "specificity",
    "surface_distances",
    "weighted_auc",
    "weighted_average_precision",
]
