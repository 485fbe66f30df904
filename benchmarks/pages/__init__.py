"""Results as tables, plots and screenshots in README and docs."""
