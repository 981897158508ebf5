"""Labelled tissue to learn with: real biopsies where they are on this machine, else phantoms."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dhlab import env

if TYPE_CHECKING:
    from dhlab.datasets.dataset import Dataset

__all__ = ["tutorial_dataset"]

FOLDER = "histo-colon-ebhi/polyp"
CASE = r"GT[A-Za-z]*(\d+)"
PHANTOMS, PATIENTS = 32, 24


def tutorial_dataset(*, size: int = 128) -> Dataset:
    """Return labelled tissue of some two dozen patients, for teaching.

    Real: 32 H&E fields of colon biopsies with outlined polyps, 512 px each (EBHI-Seg, CC BY 4.0; Shi and others,
    Frontiers in Medicine 2023), where the folder with sample data holds them; the case number in the file name is the
    patient. Else generated fields of glands in stroma, whose truth is known.

    Parameters
    ----------
    size
        Height and width of a sample, in pixels.

    Returns
    -------
    Dataset
        Segmentation of two classes, grouped by patient; its `name` says which it is.
    """
    from dhlab.datasets.dataset import Dataset

    folder = env.data_folder()
    if folder is not None and (folder / FOLDER / "images").is_dir():
        return Dataset.from_pairs(
            folder / FOLDER / "images",
            folder / FOLDER / "masks",
            values={"background": 0, "polyp": 255},
            tolerance=127,
            patient=CASE,
            size=size,
            name="colon biopsies",
        )
    from dhlab.phantoms import CLASSES, paint_slide

    pairs = [paint_slide((size, size), rng=seed, spacing=256 / size, whole=True) for seed in range(PHANTOMS)]
    glands = CLASSES.index("epithelium") + 1
    return Dataset.from_arrays(
        np.stack([image for image, _ in pairs]),
        np.stack([labels == glands for _, labels in pairs]).astype(np.int64),
        classes=("background", "gland"),
        task="segmentation",
        groups=[f"phantom {seed % PATIENTS}" for seed in range(PHANTOMS)],
        name="phantom glands",
    )
