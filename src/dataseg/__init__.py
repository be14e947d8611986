"""Co-train one segmentation model on many data sets and many tasks (DaTaSeg, NeurIPS 2023)."""
