"""Training: `fit`, and the parts that it is made of for loops of one's own."""

from dhlab.training.events import Event
from dhlab.training.fitting import fit
from dhlab.training.loading import Batch, Loader
from dhlab.training.losses import segmentation_loss, task_loss
from dhlab.training.rates import find_learning_rate
from dhlab.training.run import load_run
from dhlab.training.settings import Settings
from dhlab.training.trainer import Trainer

__all__ = [
    "Batch",
    "Event",
    "Loader",
    "Settings",
    "Trainer",
    "find_learning_rate",
    "fit",
    "load_run",
    "segmentation_loss",
    "task_loss",
]
