"""Released checkpoints: the registry of their facts, downloads, and loading of files as scorers."""
