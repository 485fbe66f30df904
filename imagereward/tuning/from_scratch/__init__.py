"""Training an autoencoder or a text encoder from random weights."""
