"""Benchmarks of scorers, bulk scoring and the server."""
