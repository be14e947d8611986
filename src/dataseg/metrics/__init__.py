"""torchmetrics.Metric classes whose figures equal the official tools."""
