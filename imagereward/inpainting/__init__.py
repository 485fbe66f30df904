"""Data sets of inpainting: makers of masks, the folder layout, and writing and reading of data sets."""
