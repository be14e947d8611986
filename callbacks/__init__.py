"""What watches a run from outside: evaluation, pictures, throughput, records."""

from callbacks.evaluation import Evaluation
from callbacks.losses import LossCurves
from callbacks.panels import Panels
from callbacks.progress import ProgressBar
from callbacks.record import RunRecord
from callbacks.throughput import Throughput

__all__ = ["Evaluation", "LossCurves", "Panels", "ProgressBar", "RunRecord", "Throughput"]
