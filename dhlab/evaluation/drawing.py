"""Pictures of a report: dark on white, legible at 600 pixels, the same whatever style the user has set."""

from __future__ import annotations

import io
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from dhlab.datasets import draw_sample
from dhlab.display import class_color, heat_colors
from dhlab.metrics import auc, average_precision, precision_recall_curve, roc_curve
from dhlab.report import Figure

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas
    from numpy.typing import NDArray

    from dhlab.datasets import Dataset
    from dhlab.evaluation.evidence import Worst
    from dhlab.scan import Scan

__all__ = [
    "GALLERY",
    "draw_agreement",
    "draw_confusion",
    "draw_curves",
    "draw_disagreement",
    "draw_gallery",
    "draw_reliability",
    "shorten",
]

# Pictures in a gallery; more classes than these make a matrix without numbers, or no curves; dots of a picture's side.
GALLERY, MOST_CELLS, MOST_CURVES, CELL = 6, 12, 8, 400
# Twice the pixels that are shown, for screens that have them.
DOTS, SHOWN = 200, 100
INK, SOFT, LINE, ACCENT = "#1c2430", "#5b6675", "#dfe4ea", "#0072b2"
# Okabe and Ito's colours without yellow, which is lost on white.
CURVES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#6e6e6e", "#1c2430")
STYLE = {
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.labelsize": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": SOFT,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    # A class name with two dollar signs is not a formula.
    "text.parse_math": False,
}


def shorten(text: str, most: int = 24) -> str:
    """Return a text that fits beside a picture."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def draw_confusion(total: NDArray[Any], classes: Sequence[str]) -> Figure:
    """Draw what was taken for what, as shares of each true class and as counts.

    Parameters
    ----------
    total
        ``(classes, classes)`` counts, rows true, columns predicted.
    classes
        Class names.
    """
    share = total / np.maximum(total.sum(1, keepdims=True), 1)
    names, many = [shorten(name) for name in classes], len(classes)
    side = min(1.4 + 0.85 * many, 6.4) if many <= MOST_CELLS else 6.4
    longest = max(map(len, names))
    slanted = longest > (11 if many <= 6 else 6)
    with _canvas(min(side + 1.2 + 0.065 * longest, 7.2), side + (0.045 * longest if slanted else 0)) as (canvas, saved):
        axes = canvas.subplots()
        axes.grid(visible=False)
        picture = axes.imshow(share, vmin=0, vmax=1, cmap="Blues")
        if many <= MOST_CELLS:
            size = 9 if many <= 6 else 7
            for row, column in np.ndindex(*share.shape):
                ink = "white" if share[row, column] > 0.55 else INK
                text = f"{share[row, column]:.2f}\n{_brief(float(total[row, column]))}" if total[row, column] else ""
                axes.text(column, row, text, ha="center", va="center", color=ink, fontsize=size, linespacing=1.3)
        ticks = range(many) if many <= 40 else []
        small = 9 if many <= MOST_CELLS else 6
        axes.set_xticks(ticks, names if len(ticks) else [], fontsize=small)
        if slanted:
            for label in axes.get_xticklabels():
                label.set(rotation=45, horizontalalignment="right", rotation_mode="anchor")
        axes.set_yticks(ticks, names if len(ticks) else [], fontsize=small)
        axes.tick_params(length=0)
        axes.set(xlabel="Predicted", ylabel="True")
        bar = canvas.colorbar(picture, ax=axes, fraction=0.046, pad=0.03)
        bar.set_label("Share of true class", fontsize=9)
        bar.outline.set_visible(False)
    text = "Confusion matrix: share of each true class (row) that was taken for each class"
    return saved(f"{text}, and how many." if many <= MOST_CELLS else f"{text}.")


def draw_disagreement(heat: Scan, name: str) -> Figure:
    """Draw where annotators differ.

    Parameters
    ----------
    heat
        Share of pairs that differ, ``yx`` uint8.
    name
        Name of the scan that they drew on.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap

    picture = heat.thumbnail(CELL)
    high, wide = (5.2 * side / max(picture.shape[:2]) for side in picture.shape[:2])
    with _canvas(wide + 1.4, high + 0.3) as (canvas, saved):
        axes = canvas.subplots()
        axes.set_axis_off()
        axes.imshow(picture, interpolation="nearest")
        bar = canvas.colorbar(
            ScalarMappable(cmap=ListedColormap(heat_colors() / 255)), ax=axes, fraction=0.046, pad=0.03
        )
        bar.set_label("Share of pairs that differ", fontsize=9)
        bar.outline.set_visible(False)
    return saved(f"Where annotators differ: {name}.")


def draw_curves(curves: Sequence[tuple[str, Any, Any]], *, threshold: float | None = None) -> list[Figure]:
    """Draw ROC and precision against recall side by side; nothing for many classes, or if no class has both kinds.

    Parameters
    ----------
    curves
        Name, truth ``(N,)`` and score ``(N,)`` per class.
    threshold
        Operating point to mark, of a single curve.
    """
    curves = [(name, t, s) for name, t, s in curves if 0 < np.count_nonzero(t) < len(t)]
    if not 0 < len(curves) <= MOST_CURVES:
        return []
    single = len(curves) == 1
    with _canvas(7.2, 3.5 if single else 3.7 + 0.22 * len(curves) / 2) as (canvas, saved):
        left, right = canvas.subplots(1, 2)
        left.plot([0, 1], [0, 1], color=SOFT, linewidth=1, linestyle=(0, (4, 3)))
        for number, (name, truth, score) in enumerate(curves):
            wrong, found, thresholds = roc_curve(truth, score)
            precise, recall, _ = precision_recall_curve(truth, score)
            color = CURVES[number]
            label, area, mean = shorten(name), auc(truth, score), average_precision(truth, score)
            text = f"{label}  {area:.3f}" if single else f"{label}: AUC {area:.3f}, average precision {mean:.3f}"
            left.plot(wrong, found, color=color, linewidth=1.8, label=text)
            # Of the points with the same recall, the first is what average precision takes.
            steps = np.flatnonzero(np.diff(recall, prepend=0.0) > 0)
            ends = np.r_[0, recall[steps]], np.r_[precise[steps[0]], precise[steps]]
            right.step(*ends, color=color, linewidth=1.8, label=f"{label}  {mean:.3f}")
            if single:
                share = float(np.mean(truth))
                right.axhline(share, color=SOFT, linewidth=1, linestyle=(0, (4, 3)))
                right.text(0.01, share + 0.015, f"share of {label}: {share:.2f}", fontsize=9, color=SOFT)
                if threshold is not None:
                    at = int(np.count_nonzero(thresholds >= threshold)) - 1
                    point = {"marker": "o", "markersize": 8, "color": "#d55e00", "zorder": 5, "clip_on": False}
                    left.plot(wrong[at], found[at], linestyle="", label=f"at score {threshold:.3g}", **point)
                    if at:
                        right.plot(recall[at - 1], precise[at - 1], linestyle="", **point)
        left.set(xlabel="1 − specificity", ylabel="Sensitivity")
        right.set(xlabel="Recall (sensitivity)", ylabel="Precision")
        for axes, title, place in ((left, "Area under ROC", "lower right"), (right, "Average precision", "lower left")):
            axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.03), aspect="equal")
            if not single:
                continue
            legend = axes.legend(title=title, loc=place, handlelength=1.4, framealpha=0.85, frameon=True)
            legend.get_frame().set_linewidth(0)
            legend.get_title().set_fontsize(9)
        if not single:
            canvas.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=2, handlelength=1.4)
    each = "" if single else ", each class against the rest"
    return [saved(f"ROC curve and precision against recall{each}; dashed: scores without meaning.")]


def draw_reliability(
    count: NDArray[np.int64],
    confidence: NDArray[np.float64],
    right: NDArray[np.float64],
    *,
    noun: str,
    labels: bool = False,
) -> Figure:
    """Draw how often a model is right against how sure it is, and how often it is how sure.

    Parameters
    ----------
    count
        Samples per bin, ``(bins,)``.
    confidence
        Mean confidence per bin, ``(bins,)``, NaN if empty.
    right
        Share that is right per bin, ``(bins,)``, NaN if empty.
    noun
        What is counted.
    labels
        Whether scores are those of labels, from 0, not those of the chosen class.
    """
    filled = count > 0
    edges = np.linspace(0, 1, len(count) + 1)
    with _canvas(4.4, 4.4) as (canvas, saved):
        upper, lower = canvas.subplots(2, 1, sharex=True, height_ratios=(3.4, 1))
        upper.plot([0, 1], [0, 1], color=SOFT, linewidth=1, linestyle=(0, (4, 3)))
        upper.vlines(confidence[filled], confidence[filled], right[filled], color="#d55e00", linewidth=2, alpha=0.55)
        upper.plot(confidence[filled], right[filled], color=ACCENT, linewidth=1.2)
        # Bins that few samples fill are small: they may well lie where they do by chance.
        sizes = 10 + 70 * np.sqrt(count[filled] / count.max())
        upper.scatter(confidence[filled], right[filled], s=sizes, color=ACCENT, zorder=3, linewidths=0)
        upper.set(ylabel="Share with label" if labels else "Share right", xlim=(-0.01, 1.01), ylim=(-0.02, 1.03))
        upper.text(0.03, 0.95, "too cautious", color=SOFT, fontsize=9, va="top")
        upper.text(0.97, 0.03, "too sure", color=SOFT, fontsize=9, ha="right")
        lower.bar(edges[:-1], 100 * count / max(1, count.sum()), width=np.diff(edges), align="edge", color="#9cc3de")
        lower.set(xlabel="Score" if labels else "Score of the chosen class", ylabel=f"{noun.capitalize()}s (%)")
        lower.grid(visible=False, axis="x")
    text = "Reliability: on the dashed line, scores are as sure as they are right; small dots stand for few."
    return saved(f"{text} Below, how scores spread.")


def draw_agreement(truth: NDArray[np.float64], prediction: NDArray[np.float64], name: str) -> Figure:
    """Draw predicted against true numbers, and their differences (Bland and Altman).

    Parameters
    ----------
    truth
        ``(N,)`` numbers.
    prediction
        ``(N,)`` numbers.
    name
        What the numbers are.
    """
    error = prediction - truth
    middle, spread = float(error.mean()), 1.96 * float(error.std(ddof=1)) if len(error) > 1 else 0.0
    style = {"s": 18 if len(truth) < 500 else 6, "alpha": 0.6 if len(truth) < 500 else 0.3, "linewidths": 0}
    with _canvas(7.2, 3.5) as (canvas, saved):
        left, right = canvas.subplots(1, 2)
        low, high = min(truth.min(), prediction.min()), max(truth.max(), prediction.max())
        room = 0.05 * (high - low) or 1.0
        ends = low - room, high + room
        left.plot(ends, ends, color=SOFT, linewidth=1, linestyle=(0, (4, 3)))
        left.scatter(truth, prediction, color=ACCENT, **style)
        short = shorten(name)
        left.set(xlabel=f"True {short}", ylabel=f"Predicted {short}", xlim=ends, ylim=ends, aspect="equal")
        right.scatter((truth + prediction) / 2, error, color=ACCENT, **style)
        right.axhline(0, color=SOFT, linewidth=1)
        for level, text in ((middle, "mean"), (middle + spread, "+1.96 SD"), (middle - spread, "−1.96 SD")):
            strong = level == middle
            right.axhline(
                level, color="#d55e00", linewidth=1.5 if strong else 1, linestyle="-" if strong else (0, (4, 3))
            )
            right.annotate(
                f"{text} {level:.3g}".replace("-", "−"),
                (1, level),
                xycoords=("axes fraction", "data"),
                xytext=(-2, 3),
                textcoords="offset points",
                ha="right",
                fontsize=8.5,
                color="#9a4400",
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.8},
            )
        reach = max(float(np.abs(error).max()), abs(middle) + spread) * 1.15 or 1.0
        right.set(xlabel="Mean of true and predicted", ylabel="Predicted − true", ylim=(-reach, reach))
    return saved(
        f"{name}: predicted against true (dashed: equal), and differences against means (Bland and Altman): mean, and "
        "the range of 95 % of the differences if they are normal."
    )


def draw_gallery(dataset: Dataset, worst: Sequence[Worst], caption: str) -> list[Figure]:
    """Draw the worst samples with what is wrong; segmentation with truth and prediction below each other.

    Parameters
    ----------
    dataset
        The samples.
    worst
        Index, text and predicted mask of each.
    caption
        What the pictures are.
    """
    if not worst or not {"y", "x"} <= set(dataset.axes):
        return []
    dense = worst[0][2] is not None
    columns = min(len(worst), 4 if dense else 3)
    rows = 3 if dense else -(-len(worst) // columns)
    cell, text = (1.65, 0.1) if dense else (2.1, 0.5)
    with _canvas(cell * columns + 0.4, (cell + text) * rows + (0.6 if dense else 0.1)) as (canvas, saved):
        grid = canvas.subplots(rows, columns, squeeze=False)
        for axes in grid.flat:
            axes.set_axis_off()
        for number, (index, title, mask) in enumerate(worst):
            image, target = dataset[index]
            if mask is None:
                _show(grid[divmod(number, columns)], _enlarge(image, None, dataset.axes)[0], title)
                continue
            picture, truth = _enlarge(image, np.asarray(target), dataset.axes)
            for row, shown in enumerate((picture, truth, _enlarge(image, mask, dataset.axes)[1])):
                _show(grid[row, number], shown, title if row == 0 else "")
        if dense:
            for axes, name in zip(grid[:, 0], ("Window", "True", "Predicted"), strict=True):
                place = {"xycoords": "axes fraction", "rotation": 90, "va": "center", "ha": "right"}
                axes.annotate(name, (-0.04, 0.5), fontsize=10, **place)
            _add_key(canvas, dataset)
    return [saved(caption)]


def _enlarge(image: NDArray[Any], mask: NDArray[Any] | None, axes: str) -> list[NDArray[np.uint8]]:
    """Return a window, and its mask if there is one, without the margin that a contact sheet has."""
    height, width = (image.shape[axes.index(letter)] for letter in "yx")
    side = min(max(height, width), CELL) + 4
    sheet = draw_sample(image, mask, axes, side)
    scale = (side - 4) / max(height, width)
    high, wide = max(1, round(height * scale)), max(1, round(width * scale))
    return [part[2 : 2 + high, 2 : 2 + wide] for part in np.split(sheet, len(sheet) // side)]


def _show(axes: Axes, picture: NDArray[np.uint8], title: str) -> None:
    axes.imshow(picture, interpolation="nearest")
    axes.set_title(title, fontsize=9, linespacing=1.25)


def _add_key(canvas: Canvas, dataset: Dataset) -> None:
    from matplotlib.patches import Patch

    shown = list(enumerate(dataset.classes))[:MOST_CELLS]
    patches = [Patch(color=_color(k), label=shorten(name, 16)) for k, name in shown]
    patches.append(Patch(facecolor="white", edgecolor=SOFT, label="no label"))
    canvas.legend(handles=patches, loc="outside lower center", ncols=4, handlelength=1.1, columnspacing=1.4)


def _color(index: int) -> tuple[float, float, float]:
    red, green, blue = class_color(index)
    return red / 255, green / 255, blue / 255


def _brief(count: float) -> str:
    """Return a count in at most five signs."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if count >= size:
            return f"{count / (1e3 if letter == 'k' else size):.3g} {letter}"
    return f"{count:.0f}"


@contextmanager
def _canvas(width: float, height: float) -> Iterator[tuple[Canvas, Any]]:
    """Give a matplotlib figure of a size in units of 100 shown pixels, and a function that makes it a picture."""
    import matplotlib.style
    from matplotlib.figure import Figure as Canvas

    with matplotlib.style.context(["default", STYLE]):
        canvas = Canvas(figsize=(width, height), dpi=DOTS, layout="constrained")
        content = io.BytesIO()

        def saved(caption: str) -> Figure:
            image = content.getvalue()
            # The width that the PNG itself states.
            return Figure(image, caption, width=int.from_bytes(image[16:20]) * SHOWN // DOTS)

        yield canvas, saved
        # Tight: whatever a layout leaves outside is not cut off, and nothing stands in empty space.
        canvas.savefig(content, format="png", bbox_inches="tight", pad_inches=0.08)
