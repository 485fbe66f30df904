"""Rewards beside scorers: the size as JPEG, and what inpainting did inside, around and outside a mask."""
