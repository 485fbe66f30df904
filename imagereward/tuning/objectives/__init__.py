"""One file an objective: its config, its loss and the minibatches that it learns from."""
