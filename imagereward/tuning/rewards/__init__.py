"""Weighted rewards, and scoring them in threads while the next images are drawn."""
