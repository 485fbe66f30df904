"""Training the autoencoder or the text encoder of a small generator from random weights."""
