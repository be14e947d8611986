"""torchmetrics.Metric classes whose scores equal the official tools.

Kept by hand: of torchmetrics' own, PQ takes neither crowds nor stated areas, mask AP keeps every mask and matches them
all at the end on each rank, and mean IoU is a mean over images.
"""

from dataseg.metrics.base import ImageMetric
from dataseg.metrics.mask_average_precision import MaskAveragePrecision
from dataseg.metrics.mean_iou import MeanIoU
from dataseg.metrics.panoptic_quality import PanopticQuality

__all__ = ["ImageMetric", "MaskAveragePrecision", "MeanIoU", "PanopticQuality"]
