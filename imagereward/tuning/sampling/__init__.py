"""Noise schedules and sampling steps of diffusion and flow models."""
