"""The training loop of generators and judges, its checkpoints and the run directory."""
