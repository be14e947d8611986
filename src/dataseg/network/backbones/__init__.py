"""Backbones: timm models by name, and ViTDet."""
