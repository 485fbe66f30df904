"""Trains and inspects the tiny models of this repository, from random weights."""
