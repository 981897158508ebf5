"""Whether a model serves all alike: its figure in parts of the data, each against the rest."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from dhlab.errors import UnknownNameError, suggest
from dhlab.metrics import draw_weights, percentile_interval
from dhlab.report import format_number

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from dhlab.datasets import Dataset
    from dhlab.evaluation.evidence import Evidence

__all__ = ["check_subgroups", "compare_subgroups"]

# Fewer units than this say little; numbers with more values than that are cut at their quartiles.
SMALL, MOST = 10, 12


def check_subgroups(dataset: Dataset, names: Sequence[str]) -> None:
    """Raise `UnknownNameError` if one of ``names`` is not a feature of ``dataset``."""
    for name in names:
        if name not in dataset.features:
            known = suggest(name, dataset.features) or f" Dataset {dataset.name!r} has none."
            raise UnknownNameError(f"no feature {name!r} to form subgroups by.{known}")


def compare_subgroups(
    evidence: Evidence,
    features: Mapping[str, Sequence[str | None]],
    figure: str,
    *,
    resamples: int,
    seed: int,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Return a row per part of the data, and notes.

    Parameters
    ----------
    evidence
        The judged samples.
    features
        A text or None of each sample, by name of the feature.
    figure
        The figure to compare.
    resamples
        Draws for the intervals.
    seed
        Seed of the draws.
    """
    rows, notes = [], []
    for name, values in features.items():
        parts, left = _divide(values)
        if left:
            notes.append(f"{name} has {len(parts) + left} values; the {len(parts)} commonest are shown.")
        for value, samples in parts:
            row = {"subgroup": name, "value": value, "samples": int(samples.sum())}
            rows.append(row | _compare(evidence, samples, figure, resamples=resamples, seed=seed))
    if not any(row["remark"] for row in rows):
        rows = [{key: value for key, value in row.items() if key != "remark"} for row in rows]
    else:
        notes.append("Differences in small subgroups come up by chance; so does one in twenty of all intervals.")
    return rows, notes


def _compare(
    evidence: Evidence, samples: NDArray[np.bool_], figure: str, *, resamples: int, seed: int
) -> dict[str, Any]:
    own = len(np.unique(evidence.place[samples]))
    rest = len(np.unique(evidence.place[~samples]))
    inside, outside = evidence.pick(samples), evidence.pick(~samples) if (~samples).any() else None
    ones, nan = np.ones((1, evidence.units)), float("nan")
    value = float(inside.figures(ones)[figure][0])
    gap = value - float(outside.figures(ones)[figure][0]) if outside is not None else nan
    drawn, gaps = [], []
    for weights in draw_weights(evidence.units, resamples=resamples, rng=seed, width=len(samples)) if own > 1 else ():
        drawn.append(inside.figures(weights)[figure])
        if outside is not None and rest > 1:
            gaps.append(drawn[-1] - outside.figures(weights)[figure])
    remark = f"fewer than {SMALL} {evidence.unit}s" if own < SMALL else ""
    return {
        f"{evidence.unit}s": own,
        figure: value,
        "95 % interval": _in_words(drawn),
        "minus the rest": gap,
        "95 % interval of that": _in_words(gaps),
        "remark": remark,
    }


def _in_words(draws: list[NDArray[np.float64]]) -> str:
    low, high = percentile_interval(np.concatenate(draws)) if draws else (float("nan"),) * 2
    return "" if np.isnan(low) else f"{format_number(low)} to {format_number(high)}"


def _divide(values: Sequence[str | None]) -> tuple[list[tuple[str, NDArray[np.bool_]]], int]:
    """Return the parts that the values of a feature make, with their samples, and how many more there are."""
    known = [value for value in values if value is not None]
    names = sorted(set(known), key=lambda value: (-known.count(value), value)) if len(set(known)) <= len(known) else []
    if len(names) > MOST and (numbers := _numbers(values)) is not None:
        parts = list(_cut(numbers))
        left = 0
    else:
        whole = np.array([value if value is not None else "" for value in values], object)
        stated = np.array([value is not None for value in values])
        parts = [(name, stated & (whole == name)) for name in sorted(names[:MOST])]
        left = max(0, len(names) - MOST)
    if len(known) < len(values):
        parts.append(("not stated", np.array([value is None for value in values])))
    return parts, left


def _numbers(values: Sequence[str | None]) -> NDArray[np.float64] | None:
    try:
        return np.array([np.nan if value is None else float(value) for value in values])
    except ValueError:
        return None


def _cut(numbers: NDArray[np.float64]) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    edges = np.unique(np.nanquantile(numbers, (0, 0.25, 0.5, 0.75, 1)))
    for low, high in pairwise(edges.tolist()):
        last = high == edges[-1]
        inside = (numbers >= low) & ((numbers <= high) if last else (numbers < high))
        if inside.any():
            yield f"{low:g} to {'' if last else 'below '}{high:g}", inside
