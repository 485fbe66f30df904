"""Measurements whose results are written into the docs, and the training of the toy models."""
