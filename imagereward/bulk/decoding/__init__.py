"""Images of rows to pixels, in processes ahead of the model; cached features."""
