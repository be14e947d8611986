"""What watches a run from outside: evaluation, pictures, throughput, records."""

from callbacks.checkpointing import Checkpoints
from callbacks.evaluation import Evaluation
from callbacks.loss_logger import LossCurves
from callbacks.metrics_file import RunRecord
from callbacks.nonfinite_guard import NonFiniteError, NonFiniteGuard
from callbacks.progress_bar import ProgressBar
from callbacks.start_up import StartUp
from callbacks.submissions import Submissions
from callbacks.tensorboard.class_tables import ClassTables
from callbacks.tensorboard.image_panels import Panels
from callbacks.tensorboard.layout import Dashboard
from callbacks.throughput import Throughput
from callbacks.unreadable_samples import UnreadableSamples
from callbacks.weight_average import WeightAverage

__all__ = [
    "Checkpoints",
    "ClassTables",
    "Dashboard",
    "Evaluation",
    "LossCurves",
    "NonFiniteError",
    "NonFiniteGuard",
    "Panels",
    "ProgressBar",
    "RunRecord",
    "StartUp",
    "Submissions",
    "Throughput",
    "UnreadableSamples",
    "WeightAverage",
]
