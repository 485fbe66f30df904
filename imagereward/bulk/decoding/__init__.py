"""Decodes images in processes ahead of the model, a damaged one to an error; keeps image features on disk."""
