"""The official submission formats: writers of our predictions, readers of any model's, for scoring."""

from dataseg.submission.files import vocabulary_of, write_json
from dataseg.submission.instances import InstanceResults, InstanceTruth
from dataseg.submission.maps import LabelFiles, PanopticFiles
from dataseg.submission.writers import InstanceWriter, LabelWriter, PanopticWriter, Writer, writer_for

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
