"""Decodes the images of rows in processes ahead of the model; keeps image features on disk."""
