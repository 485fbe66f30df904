"""Training a reward model from human rankings."""
