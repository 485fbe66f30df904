"""The tiny models in this repository, trained from random weights."""
