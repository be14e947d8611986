"""From proposals to segments: resizing, test-time augmentation, post-processing."""
