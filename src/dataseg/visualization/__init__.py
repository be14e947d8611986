"""Pictures: overlays, legends, grids, class tables."""
