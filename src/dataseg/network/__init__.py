"""The mask-classification network: backbone, pixel decoder, transformer decoder, text classifier."""
