"""Used by several benchmarks, and by tests."""
