"""Sampling trajectories; advantages; minibatches."""
