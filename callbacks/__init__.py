"""What watches a run from outside: evaluation, pictures, throughput, records."""

from callbacks.checkpoints import Checkpoints
from callbacks.class_tables import ClassTables
from callbacks.dashboard import Dashboard
from callbacks.evaluation import Evaluation
from callbacks.guards import NonFiniteError, NonFiniteGuard, UnreadableSamples
from callbacks.losses import LossCurves
from callbacks.panels import Panels
from callbacks.progress import ProgressBar
from callbacks.record import RunRecord
from callbacks.submission import Submissions
from callbacks.throughput import Throughput

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
    "Submissions",
    "Throughput",
    "UnreadableSamples",
]
