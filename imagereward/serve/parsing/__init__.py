"""Parsing of request bodies (JSON, forms, .npy) into prompts, images and pairs, within limits."""
