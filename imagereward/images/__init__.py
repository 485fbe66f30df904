"""Reads files, arrays and PIL images, within bounds on size and time, and turns them into model pixels."""
