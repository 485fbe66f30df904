"""One file a family of generators; what they have in common."""
