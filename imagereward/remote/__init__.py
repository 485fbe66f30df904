"""The verbs of a scorer behind an HTTP server."""
