"""A local page on which a person chooses the better of two images, and an adapter learns from it"""
