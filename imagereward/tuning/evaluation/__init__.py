"""Evaluating a generator during training; comparing two generators."""
