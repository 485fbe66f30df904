"""Prompts, requests, pairs and preferences; chunks of an update; random numbers by sample."""
