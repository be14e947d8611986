"""torchmetrics.Metric classes whose figures equal the official tools."""

from dataseg.metrics.base import ImageMetric
from dataseg.metrics.mask_average_precision import MaskAveragePrecision
from dataseg.metrics.mean_iou import MeanIoU
from dataseg.metrics.panoptic_quality import PanopticQuality

__all__ = ["ImageMetric", "MaskAveragePrecision", "MeanIoU", "PanopticQuality"]
