"""Clients of a reward server: a scorer whose model runs behind HTTP."""
