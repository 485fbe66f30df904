"""Scorers: every verb once, and the engine that runs a model over pairs."""
