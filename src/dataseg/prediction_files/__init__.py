"""The official prediction file formats: writers of our predictions, readers of any model's, for scoring."""

from dataseg.io.json_files import write_json
from dataseg.prediction_files.files import vocabulary_of
from dataseg.prediction_files.files_of_task import Writer, writer_for
from dataseg.prediction_files.instances import InstanceResults, InstanceTruth
from dataseg.prediction_files.maps import LabelFiles, PanopticFiles
from dataseg.prediction_files.writers import InstanceWriter, LabelWriter, PanopticWriter

__all__ = [
    "InstanceResults",
    "InstanceTruth",
    "InstanceWriter",
    "LabelFiles",
    "LabelWriter",
    "PanopticFiles",
    "PanopticWriter",
    "Writer",
    "vocabulary_of",
    "write_json",
    "writer_for",
]
