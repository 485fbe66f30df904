"""Scorers inside loops that exist already: metrics, trainers, pipelines, node graphs. One file a library."""
