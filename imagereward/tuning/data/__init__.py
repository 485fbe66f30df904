"""Prompts, requests and (prompt, image) pairs; chunks of an update; random numbers by sample."""
