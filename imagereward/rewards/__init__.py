"""Rewards that need no model: functions of (pixels, prompts)."""
