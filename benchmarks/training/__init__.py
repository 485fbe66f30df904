"""Benchmarks of reward-model training and fine-tuning."""
