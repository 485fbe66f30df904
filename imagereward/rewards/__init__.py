"""Reward functions of (pixels, prompts) that need no model."""
