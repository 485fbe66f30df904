"""Bodies of requests to prompts and images, within bounds."""
