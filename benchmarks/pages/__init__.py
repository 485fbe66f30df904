"""Renders results files as tables, plots and screenshots for README and docs."""
