"""Typed records that every package passes on; checked when they are built. Imports nothing else of the project.

Shape legend used across the project::

    B = batch   Q = queries   C = classes of one vocabulary   K = target segments of one image
    H, W = image rows, columns   h, w = rows, columns of the mask logits (H / 4, W / 4)   S = class names (synonyms)
    D = width of the text space   P = sampled points

Boxes are ``xyxy`` in absolute pixels; column 0 of a pixel spans [0, 1]. Class labels are contiguous indices
``0..C-1`` into a `Vocabulary`, never official ids.
"""

from dataseg.structures.batch import UNREADABLE, Batch, Proposals, Sample
from dataseg.structures.errors import UserError
from dataseg.structures.evaluation import DatasetSpec, Task, TestTimeAugmentation
from dataseg.structures.segments import VOID, Boxes, InstanceMasks, SegmentMap, Segments, Target
from dataseg.structures.vocabulary import ClassEmbeddings, ClassSpec, Vocabulary

__all__ = [
    "UNREADABLE",
    "VOID",
    "Batch",
    "Boxes",
    "ClassEmbeddings",
    "ClassSpec",
    "DatasetSpec",
    "InstanceMasks",
    "Proposals",
    "Sample",
    "SegmentMap",
    "Segments",
    "Target",
    "Task",
    "TestTimeAugmentation",
    "UserError",
    "Vocabulary",
]
