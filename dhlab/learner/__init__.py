"""Live learning: a few strokes teach a classifier of pixels or cells, which is corrected while one looks."""

from __future__ import annotations

from dhlab.learner.cells import find_nuclei, measure_cells
from dhlab.learner.learner import Learner
from dhlab.learner.simulation import draw_strokes

__all__ = ["Learner", "draw_strokes", "find_nuclei", "measure_cells"]
